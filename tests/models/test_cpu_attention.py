import math

import pytest
import torch
from every_pattern import MODELS

from dalle.models import cpu_attention as module
from dalle.models.cpu_attention import flash_attention, is_flash_supported, merge_attention
from dalle.models.transformer import kv_cache
from dalle.models.transformer.patterns import PATTERNS, Pattern, image_attend_mask

needs_operator = pytest.mark.skipif(not is_flash_supported(), reason="this torch has no flash attention for a CPU")


@pytest.fixture
def fresh_trial():
    """Clear the cached check of the operator before and after a test."""
    is_flash_supported.cache_clear()
    yield
    is_flash_supported.cache_clear()


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """Number of queries of each call of flash attention by a KV cache."""
    calls = []

    def counted(q, k, v):
        calls.append(q.shape[2])
        return flash_attention(q, k, v)

    monkeypatch.setattr(kv_cache, "flash_attention", counted)
    return calls


@needs_operator
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize(("queries", "first", "second"), [(1, 1, 1), (1, 64, 200), (5, 40, 3)])
def test_merged_attention_is_one_softmax_over_both_sets_of_keys(queries, first, second, scale):
    generator = torch.Generator().manual_seed(0)
    q = scale * torch.randn(2, 3, queries, 16, generator=generator)
    k, v = torch.randn(2, 2, 3, first + second, 16, generator=generator)
    parts = (flash_attention(q, k[:, :, keys], v[:, :, keys]) for keys in (slice(first), slice(first, None)))
    expected = (q @ k.mT / 4).softmax(dim=-1) @ v
    assert torch.allclose(merge_attention(*parts), expected, atol=1e-5)


def decoded(model, captions: int = 2, candidates: int = 3) -> torch.Tensor:
    """Decode random tokens: (captions * candidates, I, v) logits."""
    tokens = torch.randint(13, (captions * candidates, 16), generator=torch.Generator().manual_seed(1))
    ids = model.sequence.pad_captions([[1, 2, 3], [4]][:captions])
    cache = model.new_cache(model.prefill(ids), candidates)
    previous = torch.cat([torch.full((len(tokens), 1), model.sequence.start_of_image), tokens[:, :-1]], dim=1)
    return torch.stack([model.decode_one_token(previous[:, n], n, cache) for n in range(16)], dim=1)


def has_adjacent_slots(pattern: Pattern, grid: int) -> bool:
    """Return True if every position attends to adjacent slots of the cache, so that none has to be masked."""
    slots = pattern.slot(torch.arange(grid * grid), grid)
    return all(bool((slots[row].sort().values.diff() == 1).all()) for row in image_attend_mask(pattern, grid))


@needs_operator
@pytest.mark.parametrize("changes", MODELS, ids=str)
@pytest.mark.parametrize("captions", [1, 2])
@pytest.mark.parametrize("candidates", [1, 3])
@torch.no_grad()
def test_decoding_with_flash_attention_gives_the_logits_of_matrix_products(
    make_transformer, calls, monkeypatch, changes, captions, candidates
):
    model = make_transformer(**changes)
    found = decoded(model, captions, candidates)
    pattern = PATTERNS[changes["patterns"][0]].build(model.config.pattern_options)
    used = 2 * 16 * model.config.depth if has_adjacent_slots(pattern, model.config.grid) else 0
    assert len(calls) == used
    monkeypatch.setattr(kv_cache, "is_flash_supported", lambda: False)
    expected = decoded(model, captions, candidates)
    assert len(calls) == used
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"patterns": ["convolutional"]}, {"pads": "masked"}, {"attention_normalisation": "separate"}], ids=str
)
@torch.no_grad()
def test_masks_and_separate_softmaxes_do_not_use_flash_attention(make_transformer, calls, changes):
    decoded(make_transformer(**{"patterns": ["dense"], "kernel": 3, **changes}))
    assert not calls


def test_gradients_and_autocast_do_not_use_flash_attention(make_transformer, calls):
    """It has no gradient through the log-sum-exp, and its inputs need one dtype."""
    model = make_transformer(patterns=["dense"])
    decoded(model)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        decoded(model)
    assert not calls


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError])
def test_an_operator_that_fails_is_not_used(monkeypatch, fresh_trial, error):
    def fail(*_):
        raise error("no such operator")

    monkeypatch.setattr(module, "flash_attention", fail)
    assert not is_flash_supported()


@needs_operator
def test_an_operator_that_computes_something_else_is_not_used(monkeypatch, fresh_trial):
    """For instance log-sum-exps in base 2."""

    def in_base_two(q, k, v):
        output, log_sum_exp = flash_attention(q, k, v)
        return output, log_sum_exp / math.log(2)

    monkeypatch.setattr(module, "flash_attention", in_base_two)
    assert not is_flash_supported()
