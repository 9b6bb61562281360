import pytest
import torch
from torch import Tensor, nn

from dalle.models import blocks
from dalle.models import cpu_linear as module
from dalle.models.cpu_linear import PackedLinear, is_packing_supported, pack_linear_layers
from dalle.sampling.decode import sample_all_tokens
from dalle.sampling.sampling_config import DecodingConfig

FORMATS = [torch.float32, torch.bfloat16]
needs_operators = pytest.mark.skipif(
    not is_packing_supported(torch.float32), reason="this torch has no packed linear layers"
)
needs_bfloat16 = pytest.mark.skipif(
    not is_packing_supported(torch.bfloat16), reason="no bfloat16 products on this processor"
)


@pytest.fixture
def fresh_trial():
    """Clear the cached check of the operators before and after a test."""
    is_packing_supported.cache_clear()
    yield
    is_packing_supported.cache_clear()


BLOCKS = [{"activation": "quick_gelu"}, {"activation": "gelu"}, {"qk_norm": True}, {"mlp": "swiglu"}]


@needs_operators
@torch.inference_mode()
def test_unsupported_activation_is_computed_unfused(make_transformer, monkeypatch):
    monkeypatch.setitem(blocks.ACTIVATIONS, "softplus", blocks.Activation(torch.nn.Softplus))
    model = make_transformer(width=32, activation="softplus")
    caption, image = sequence(model)
    assert torch.allclose(pack_linear_layers(model, 3)(caption, image).image, model(caption, image).image, atol=1e-5)


def sequence(model, b: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 13, (b, model.sequence.image_positions), generator=generator)
    return model.sequence.pad_captions([[1, 2, 3], [4], [5, 6]][:b]), image


@needs_operators
@pytest.mark.parametrize("changes", BLOCKS, ids=str)
@pytest.mark.parametrize("batch", [1, 3, 64])
@torch.inference_mode()
def test_packed_and_plain_layers_agree(make_transformer, changes, batch):
    model = make_transformer(width=32, patterns=["paper"], **changes)
    caption, image = sequence(model)
    expected, found = model(caption, image), pack_linear_layers(model, batch)(caption, image)
    assert torch.allclose(found.image, expected.image, atol=1e-5)
    assert torch.allclose(found.text, expected.text, atol=1e-5)


@needs_bfloat16
@torch.inference_mode()
def test_bfloat16_is_used_for_matrix_products_only(make_transformer):
    model = make_transformer(width=32)
    caption, image = sequence(model)
    expected, packed = model(caption, image).image, pack_linear_layers(model, 3, torch.bfloat16)
    found = packed(caption, image).image
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.05 * expected.std()
    assert all(text.keys.dtype == text.values.dtype == torch.float32 for text in packed.prefill(caption))

    states = torch.randn(3, 32)
    assert torch.allclose(packed.image_head(states), model.image_head(states), atol=1e-5)  # logits are fp32 (App. D)


@needs_operators
@pytest.mark.parametrize("changes", BLOCKS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@torch.inference_mode()
def test_packed_models_of_other_dtypes_agree(make_transformer, changes, dtype):
    model = make_transformer(width=32, **changes).to(dtype)
    caption, image = sequence(model)
    expected, found = model(caption, image).image, pack_linear_layers(model, 3)(caption, image).image
    assert found.dtype == expected.dtype == torch.float32
    assert (found - expected).abs().max() < 0.05 * expected.std()


@needs_operators
@pytest.mark.parametrize("precision", FORMATS, ids=str)
@pytest.mark.parametrize("decoding", ["sequential", "parallel"])
def test_models_of_16_bits_sample_on_a_cpu(make_transformer, decoding, precision):
    if not is_packing_supported(precision):
        pytest.skip("no bfloat16 products on this processor")
    model, config = make_transformer(width=32), DecodingConfig(decoding=decoding)
    caption, _ = sequence(model)
    expected = sample_all_tokens(model, caption, 4, config)
    for dtype in (torch.bfloat16, torch.float16):
        images = sample_all_tokens(make_transformer(width=32).to(dtype), caption, 4, config, precision=precision)
        assert (images == expected).float().mean() > 0.8  # 0.08 by chance; rounding changes tokens that nearly tie


@needs_operators
def test_packed_model_samples_the_same_images(make_transformer, monkeypatch):
    model = make_transformer(patterns=["paper"], depth=3)
    caption, _ = sequence(model)
    drawn = sample_all_tokens(model, caption, 4, DecodingConfig(seed=3))
    monkeypatch.setattr(module, "is_packing_supported", lambda dtype: False)
    assert sample_all_tokens(model, caption, 4, DecodingConfig(seed=3)).equal(drawn)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_packing_leaves_the_model_trainable(make_transformer, dtype):
    model = make_transformer()
    caption, image = sequence(model)
    names, kinds = list(model.state_dict()), [type(part) for part in model.modules()]
    packed = pack_linear_layers(model, 3, dtype)
    with torch.inference_mode():
        before = packed(caption, image).image.clone()

    assert list(model.state_dict()) == list(packed.state_dict()) == names
    assert all(own is shared for own, shared in zip(model.parameters(), packed.parameters(), strict=True))
    assert [type(part) for part in model.modules()] == kinds
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    logits = model(caption, image)
    (logits.text.square().mean() + logits.image.square().mean()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()
    with torch.inference_mode():
        assert torch.allclose(
            pack_linear_layers(model, 3)(caption, image).image, model(caption, image).image, atol=1e-5
        )
        assert not torch.allclose(before, model(caption, image).image, atol=1e-3)


@needs_operators
def test_packing_handles_layers_without_bias_and_empty_containers():
    model = nn.ModuleDict({"a": nn.Linear(8, 4, bias=False), "b": nn.ModuleList(), "c": nn.LayerNorm(4)})
    packed = pack_linear_layers(model, 2)
    x = torch.randn(2, 8)
    with torch.inference_mode():
        assert isinstance(packed["a"], PackedLinear)
        assert torch.allclose(packed["a"](x), model["a"](x), atol=1e-6)
    assert packed["c"].weight is model["c"].weight


@pytest.mark.parametrize(
    "broken",
    [
        {"_pack_weight": lambda weight, batch: torch.ops.mkldnn.no_such_operator(weight, batch)},
        {"_packed_linear": lambda x, layout, bias, activation: torch.zeros(4, 16)},
        {"_packed_linear": lambda x, layout, bias, activation: torch.ops.mkldnn._linear_pointwise(x)},
    ],
    ids=["no operator", "wrong results", "other arguments"],
)
def test_missing_operators_leave_the_model_unpacked(make_transformer, monkeypatch, fresh_trial, broken):
    for name, function in broken.items():
        monkeypatch.setattr(module, name, function)
    model = make_transformer()
    assert pack_linear_layers(model, 1) is model
    assert sample_all_tokens(model, sequence(model)[0], 1).shape == (3, 1, 4, 4)


def test_models_on_other_devices_are_not_packed():
    model = nn.Linear(4, 4, device="meta")
    assert pack_linear_layers(model, 1) is model
