"""Image tokens for the transformer stage: argmax codes, sampled codes, and soft targets."""

import numpy as np
import pytest
import torch

from dalle.losses import token_nll
from dalle.stages.image_tokens import most_probable_tokens, sampled_tokens, soft_target_tokens, token_choice_named


def generators(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng((seed, picture)) for picture in range(count)]


def some_logits(batch: int = 2) -> torch.Tensor:
    return 2 * torch.randn(batch, 7, 3, 4, generator=torch.Generator().manual_seed(0))


def test_argmax_tokens_are_in_raster_order():
    logits = some_logits()
    tokens = most_probable_tokens(logits)
    assert tokens.inputs.equal(tokens.targets)
    assert tokens.inputs[1, 4 * 2 + 3] == logits[1, :, 2, 3].argmax()


def test_sampled_tokens_follow_their_probabilities():
    logits = torch.tensor([2.0, 1.0, 0.0, -torch.inf, -1.0])
    tokens = sampled_tokens(logits[:, None, None].expand(4, 5, 100, 100), generators(4))
    assert tokens.inputs is tokens.targets
    counts = torch.bincount(tokens.inputs.flatten(), minlength=5)
    assert counts[3] == 0
    expected = logits.softmax(dim=0) * tokens.inputs.numel()
    possible = [0, 1, 2, 4]
    chi_squared = ((counts - expected).square() / expected)[possible].sum()
    assert chi_squared < 16.3  # of 3 degrees: once in a thousand


def test_each_image_samples_with_its_own_generator():
    logits = some_logits()
    both = sampled_tokens(logits, generators(2)).inputs
    second = sampled_tokens(logits[1:], generators(2)[1:]).inputs
    assert both[1].equal(second[0])
    assert not sampled_tokens(logits, generators(2, seed=1)).inputs.equal(both)


@pytest.mark.parametrize(("uniform", "code"), [(0.0, 1), (1 - 2**-24, 5)])
def test_extreme_uniform_numbers_give_valid_codes(uniform, code):
    class Extreme(np.random.Generator):
        def random(self, size, dtype):
            return np.full(size, uniform, dtype)

    logits = some_logits(batch=1)
    logits[:, [0, 6]] = -torch.inf
    assert (sampled_tokens(logits, [Extreme(np.random.PCG64())]).inputs == code).all()


def test_soft_targets_are_the_distribution_of_sampled_inputs():
    logits = some_logits()
    tokens = soft_target_tokens(logits, generators(2))
    assert tokens.inputs.equal(sampled_tokens(logits, generators(2)).inputs)
    assert tokens.targets.shape == (2, 12, 7)
    torch.testing.assert_close(tokens.targets[1, 4 * 2 + 3], logits[1, :, 2, 3].softmax(dim=0))


def test_soft_loss_is_the_expected_loss_of_samples():
    logits, answer = some_logits(batch=1), torch.randn(1, 12, 7, generator=torch.Generator().manual_seed(1))
    draws = 4_000
    tokens = sampled_tokens(logits.expand(draws, -1, -1, -1), generators(draws)).targets
    mean = token_nll(answer.expand(draws, -1, -1), tokens).mean(dim=0)
    expected = token_nll(answer, soft_target_tokens(logits, generators(1)).targets)[0]
    assert (mean - expected).abs().max() < 0.15  # the draws' standard deviation is about 1.5 / sqrt(4000)


def test_unknown_image_targets_raise():
    with pytest.raises(ValueError, match="image_targets='hard' is unknown; choose one of argmax, sampled, soft"):
        token_choice_named("hard")
