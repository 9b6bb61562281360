"""Mixed precision: half precision in matrix products only (the paper) is closer to float32 than everywhere."""

import copy

import pytest
import torch
import torch.nn.functional as F

from dalle.models.mixed_precision import HalfLinear, to_mixed_precision
from dalle.models.transformer.model import Transformer, TransformerConfig
from dalle.sampling.decode import sample_all_tokens


def deep_network() -> Transformer:
    """Return 64 layers with random weights, which amplify rounding errors of the first."""
    torch.manual_seed(0)
    config = TransformerConfig(8, 30, 50, grid=4, width=64, depth=64, heads=2, kernel=3, initial_scale=0.5)
    model = Transformer(config)
    with torch.no_grad():
        for head in (model.text_head, model.image_head):
            head.weight.normal_(std=head.in_features**-0.5)
    return model.eval()


@torch.no_grad()
def divergence(model: Transformer, exact: Transformer) -> float:
    """Return the mean KL divergence from the exact model per token, in nats."""
    captions = exact.sequence.pad_captions([[1, 2, 3], [4, 5]])
    images = torch.randint(50, (2, 16), generator=torch.Generator().manual_seed(1))
    expected, found = (network(captions, images).image.double().log_softmax(dim=-1) for network in (exact, model))
    return F.kl_div(found, expected, reduction="none", log_target=True).sum(dim=-1).mean().item()


def test_norms_embeddings_and_unembeddings_stay_in_float32():
    model = to_mixed_precision(deep_network(), torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    half = {name.split(".")[-2] for name, dtype in dtypes.items() if dtype == torch.bfloat16}
    assert half == {"qkv", "out", "expand"}
    assert {dtypes[name] for name in ("text_head.weight", "image_head.weight", "norm.weight")} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if name.startswith("embed")} == {torch.float32}
    assert model.dtype == torch.bfloat16


def test_mixed_precision_is_closer_to_float32_than_half_precision_everywhere():
    exact = deep_network()
    mixed = divergence(to_mixed_precision(copy.deepcopy(exact), torch.bfloat16), exact)
    everywhere = divergence(copy.deepcopy(exact).to(torch.bfloat16), exact)
    print(f"KL from float32, nats a token: {mixed:.1e} with half-precision matrices, {everywhere:.1e} with all in half")
    assert 0 < mixed < everywhere / 3


def test_state_dict_has_the_same_names():
    model = deep_network()
    names = list(model.state_dict())
    assert list(to_mixed_precision(model, torch.bfloat16).state_dict()) == names


def test_float32_leaves_a_model_unchanged():
    model = deep_network()
    to_mixed_precision(model, torch.float32)
    assert not any(isinstance(module, HalfLinear) for module in model.modules())


@pytest.mark.parametrize("recompute_kv", [False, True])
@torch.no_grad()
def test_cached_decoding_matches_full_forward_within_rounding(make_transformer, recompute_kv):
    model = to_mixed_precision(make_transformer(depth=4), torch.bfloat16)
    captions = model.sequence.pad_captions([[1, 2, 3], [4]])
    images = torch.randint(13, (2, 16), generator=torch.Generator().manual_seed(1))
    cache = model.new_cache(model.prefill(captions), 1, recompute_kv)
    assert {layer.nbytes for layer in cache} and model.prefill(captions)[0].keys.dtype == torch.bfloat16
    inputs = model.sequence.image_inputs(images)
    steps = torch.stack([model.decode_one_token(inputs[:, n], n, cache) for n in range(16)], dim=1)
    torch.testing.assert_close(steps, model(captions, images).image, rtol=0.1, atol=0.1)
    assert sample_all_tokens(model, captions, 2, recompute_kv=recompute_kv).shape == (2, 2, 4, 4)
