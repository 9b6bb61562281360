import pytest
import torch
from every_pattern import MODELS
from torch import Tensor

from dalle.models.transformer.kv_cache import Cache
from dalle.models.transformer.model import Transformer

CHANGES = [
    *MODELS,
    {"patterns": ["paper"], "pads": "masked", "image_position_embedding": "own"},
    {"patterns": ["paper"], "attention_normalisation": "separate", "qk_norm": True},
]
LENGTHS = [0, 1, 4, 6, 15]  # of a 4 x 4 image: none, one position, a row, a row and a half, all but one
CANDIDATES = 3


def inputs(model: Transformer) -> tuple[Tensor, Tensor]:
    """Return two captions, and the previous tokens of three images of each; those of the first caption are equal."""
    tokens = torch.randint(13, (2 * CANDIDATES, 16), generator=torch.Generator().manual_seed(1))
    tokens[:CANDIDATES] = tokens[0]
    return model.sequence.pad_captions([[1, 2, 3], [4]]), model.sequence.image_inputs(tokens)


def decode(model: Transformer, previous: Tensor, cache: Cache, positions: range, static_shapes: bool) -> list[Tensor]:
    steps = ((n, torch.tensor([n]) if static_shapes else n) for n in positions)
    return [model.decode_one_token(previous[:, n], position, cache) for n, position in steps]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("static_shapes", [False, True])
@pytest.mark.parametrize("recompute_kv", [False, True])
@pytest.mark.parametrize("changes", CHANGES, ids=str)
@torch.no_grad()
def test_prefilled_cache_equals_that_of_single_steps(make_transformer, changes, recompute_kv, static_shapes, length):
    model = make_transformer(depth=4, **changes)
    captions, previous = inputs(model)

    def new_cache() -> Cache:
        return model.new_cache(model.prefill(captions), CANDIDATES, recompute_kv, static_shapes)

    stepped = new_cache()
    decode(model, previous, stepped, range(length), static_shapes)
    expected = [tensor.clone() for layer in stepped for tensor in layer.tensors]
    logits = decode(model, previous, stepped, range(length, 16), static_shapes)
    for max_images, max_positions in ((6, 16), (2, 16), (2, 5), (1, 3), (6, 1)):
        cache = new_cache()
        model.prefill_image(previous[:, :length], cache, max_images, max_positions)
        for found, tensor in zip((tensor for layer in cache for tensor in layer.tensors), expected, strict=True):
            torch.testing.assert_close(found, tensor, rtol=0, atol=1e-5)
        found = decode(model, previous, cache, range(length, 16), static_shapes)
        torch.testing.assert_close(torch.stack(found), torch.stack(logits), rtol=0, atol=1e-4)


@pytest.mark.parametrize("recompute_kv", [False, True])
@pytest.mark.parametrize("changes", CHANGES, ids=str)
@torch.no_grad()
def test_cache_of_earlier_images_is_overwritten(make_transformer, changes, recompute_kv):
    model = make_transformer(depth=4, **changes)
    captions, previous = inputs(model)
    used, new = (model.new_cache(model.prefill(captions), CANDIDATES, recompute_kv) for _ in range(2))
    decode(model, previous.flip(0).clone(), used, range(16), False)
    for cache in (used, new):
        model.prefill_image(previous[:, :7], cache, 2, 3)
    found, expected = (torch.stack(decode(model, previous, cache, range(7, 16), False)) for cache in (used, new))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_equal_candidates_are_processed_once(make_transformer, monkeypatch):
    model = make_transformer()
    captions, previous = inputs(model)
    rows = []
    embed = model.embed.embed_image_tokens
    monkeypatch.setattr(
        model.embed, "embed_image_tokens", lambda tokens, at: rows.append(tokens.shape) or embed(tokens, at)
    )
    model.prefill_image(
        previous[:, :8], model.new_cache(model.prefill(captions), CANDIDATES), max_images=2, max_positions=8
    )
    assert rows == [(1, 8), (2, 8), (1, 8)]
