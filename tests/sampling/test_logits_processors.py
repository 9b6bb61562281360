import pytest
import torch

from dalle.sampling.logits_processors import min_p, process_logits, top_k, top_p
from dalle.sampling.sampling_config import DecodingConfig


def kept(logits: torch.Tensor) -> torch.Tensor:
    return logits > -torch.inf


@pytest.mark.parametrize("k", [1, 3, 7, 8, 20])
def test_top_k_keeps_the_k_largest(k: int):
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    filtered = top_k(logits, k)
    assert (kept(filtered).sum(dim=-1) == min(k, 8)).all()
    assert filtered[kept(filtered)].equal(logits[kept(filtered)])
    for before, after in zip(logits, filtered, strict=True):
        assert set(after.topk(min(k, 8)).indices.tolist()) == set(before.topk(min(k, 8)).indices.tolist())


def test_top_k_keeps_exactly_k_among_equals():
    assert kept(top_k(torch.zeros(2, 8), 3)).sum(dim=-1).tolist() == [3, 3]


@pytest.mark.parametrize(
    ("p", "expected"), [(0.05, [1]), (0.45, [1]), (0.55, [1, 3]), (0.75, [1, 3]), (0.85, [1, 2, 3])]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_p(p: float, expected: list[int]):
    logits = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log()
    assert kept(top_p(logits, p))[0].nonzero().flatten().tolist() == expected


def test_top_p_of_one_keeps_everything():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 3
    assert kept(top_p(logits, 1.0)).all()


def test_top_p_keeps_the_most_probable_token_however_small_p_is():
    logits = torch.randn(50, 1024, generator=torch.Generator().manual_seed(0))
    assert kept(top_p(logits, 1e-30)).nonzero()[:, 1].equal(logits.argmax(dim=1))


@pytest.mark.parametrize(("share", "expected"), [(0.05, [0, 1, 2, 3]), (0.2, [1, 2, 3]), (0.5, [1, 3]), (1.0, [1])])
def test_min_p_threshold_is_relative_to_the_most_probable(share: float, expected: list[int]):
    logits = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log() + 7  # unnormalised, as models give them
    filtered = min_p(logits, share)
    assert kept(filtered)[0].nonzero().flatten().tolist() == expected
    assert filtered[kept(filtered)].equal(logits[kept(filtered)])


def test_min_p_keeps_fewer_tokens_of_a_peaked_distribution():
    sure, unsure = torch.tensor([[8.0, 1.0, 0.5, 0.0]]), torch.tensor([[1.0, 0.9, 0.8, 0.7]])
    narrow = DecodingConfig(min_p=0.1)
    assert kept(process_logits(sure, narrow)).sum() == 1
    assert kept(process_logits(unsure, narrow)).sum() == 4


def test_temperature_is_applied_before_top_p():
    logits = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log()
    # halved temperature squares the odds: 0.5 becomes 0.68
    assert kept(process_logits(logits, DecodingConfig(temperature=0.5, top_p=0.6))).sum() == 1
    assert kept(process_logits(logits, DecodingConfig(temperature=1.0, top_p=0.6))).sum() == 2
    torch.testing.assert_close(process_logits(logits, DecodingConfig(temperature=2.0)), logits / 2)


def test_temperature_zero_keeps_the_most_probable_token():
    greedy = DecodingConfig(temperature=0, top_k=3)
    assert kept(process_logits(torch.tensor([[1.0, 3.0, 2.0]]), greedy)).tolist() == [[False, True, False]]


def test_input_logits_are_not_modified():
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    process_logits(logits, DecodingConfig(temperature=0.7, top_k=4, top_p=0.5))
    assert logits.equal(before)
