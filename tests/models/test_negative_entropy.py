"""The KL divergence in chunks of positions equals torch's, and keeps only the logits."""

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from dalle.losses import kl_to_uniform
from dalle.models.dvae import gumbel_embedding

CODES, SIDE = 50, 6


def logits_of(layout: torch.memory_format) -> torch.Tensor:
    logits = 3 * torch.randn(2, CODES, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    logits[0, 3, 1, 1] = 300  # a certain code: all other probabilities are 0
    return logits.to(memory_format=layout).requires_grad_()


@pytest.mark.parametrize("chunk", [1, 700, 1 << 19])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_values_and_gradients_are_those_of_torchs_distributions(layout, chunk, monkeypatch):
    monkeypatch.setattr(gumbel_embedding, "CHUNK", chunk)
    logits = logits_of(layout)
    uniform = Categorical(logits=torch.zeros(CODES, dtype=torch.float64))
    expected = kl_divergence(Categorical(logits=logits.double().movedim(1, 3)), uniform)
    actual = kl_to_uniform(logits)
    torch.testing.assert_close(actual, expected.float(), rtol=1e-5, atol=1e-5)
    weights = torch.randn(actual.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((actual * weights).sum(), logits)
    (reference,) = torch.autograd.grad((expected * weights).sum(), logits)
    torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-6)


def test_only_logits_and_results_are_kept_for_the_backward_pass():
    logits = logits_of(torch.channels_last)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        kl_to_uniform(logits)
    assert sorted(kept) == [2 * SIDE**2, logits.numel()]
