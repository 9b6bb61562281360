"""Decoding with KV caches: the same logits as a forward pass of the whole sequence."""

from itertools import product

import pytest
import torch
from tiny_transformers import CHANGES, example
from torch.fx.experimental.proxy_tensor import make_fx


@pytest.mark.parametrize("static_shapes", [False, True])
@pytest.mark.parametrize("recompute_kv", [False, True])
@pytest.mark.parametrize("changes", CHANGES, ids=str)
@torch.no_grad()
def test_cached_decoding_matches_full_forward(make_transformer, changes, recompute_kv, static_shapes):
    model = make_transformer(depth=4, **changes)
    caption, _ = example(model, batch=2)
    candidates = 3
    images = torch.randint(13, (2 * candidates, 16), generator=torch.Generator().manual_seed(1))
    expected = model(caption.repeat_interleave(candidates, dim=0), images).image

    cache = model.new_cache(model.prefill(caption), candidates, recompute_kv, static_shapes)
    inputs = model.sequence.image_inputs(images)
    positions = [torch.tensor([n]) if static_shapes else n for n in range(16)]
    states = [model.decode_one_token(inputs[:, n], position, cache) for n, position in enumerate(positions)]
    torch.testing.assert_close(torch.stack(states, dim=1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recompute_kv", [False, True])
@torch.no_grad()
def test_step_at_any_position_can_be_one_cuda_graph(make_transformer, recompute_kv):
    model = make_transformer(depth=4)  # row, column, row, convolutional
    caption, image = example(model)
    inputs = model.sequence.image_inputs(image)
    cache = model.new_cache(model.prefill(caption), 1, recompute_kv, static_shapes=True)

    def step(previous: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        return model.decode_one_token(previous, position, cache)

    # as a CUDA graph has it: the operations of position 0, on the same tensors, whatever Python would do elsewhere
    recorded = make_fx(step)(inputs[:, 0], torch.tensor([0]))
    states = [recorded(inputs[:, n], torch.tensor([n])) for n in range(16)]
    torch.testing.assert_close(torch.stack(states, dim=1), model(caption, image).image, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_hidden_state_cache_halves_memory_of_column_layers(make_transformer):
    model = make_transformer(depth=4)  # row, column, row, convolutional
    captions = model.prefill(example(model)[0])
    plain, recompute_kv = (model.new_cache(captions, 3, recompute_kv) for recompute_kv in (False, True))
    for layer, smaller, name in zip(plain, recompute_kv, model.pattern_names, strict=True):
        assert smaller.nbytes * (2 if name == "column" else 1) == layer.nbytes


@torch.no_grad()
def test_candidates_share_cached_keys_of_their_caption(make_transformer):
    model = make_transformer()
    captions = model.prefill(example(model)[0])
    cache = model.new_cache(captions, candidates=5)
    assert all(layer.prefix is prefix for layer, prefix in zip(cache, captions, strict=True))


@torch.no_grad()
def test_decoding_works_under_bfloat16_autocast(make_transformer):
    model = make_transformer(depth=3)
    caption, image = example(model)
    expected = model(caption, image).image[:, 0]
    start = model.sequence.image_inputs(image)[:, 0]
    for recompute_kv, static_shapes in product((False, True), repeat=2):
        with torch.autocast("cpu", torch.bfloat16):
            cache = model.new_cache(model.prefill(caption), 1, recompute_kv, static_shapes)
            logits = model.decode_one_token(start, torch.tensor([0]) if static_shapes else 0, cache)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, expected, rtol=0.1, atol=0.3)
