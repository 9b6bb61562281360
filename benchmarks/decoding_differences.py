"""Differences between the images of parallel and of sequential decoding: rounding, or an error?

Windows of tokens and single tokens round differently. This may change a token only where the two largest sums of logit
and noise are closer than the difference that rounding makes, which is measured on the same tokens. Such a difference
is a tie. In float32 any other one is an error.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dalle.models.transformer.model import Transformer
from dalle.sampling.decode import DecodingSession, TokenSampler
from dalle.sampling.gumbel_noise import candidate_noise_keys, gumbel_noise
from dalle.sampling.logits_processors import process_logits
from dalle.sampling.sampling_config import DecodingConfig


@dataclass(frozen=True)
class Difference:
    """First token of an image that differs between sequential and parallel decoding."""

    candidate: int
    position: int
    gap: float  # between the sums of logit and noise of the two tokens, in sequential decoding
    rounding: float  # largest difference of the logits of the two methods, given the same tokens, at any position

    @property
    def is_tie(self) -> bool:
        return self.gap < self.rounding


@torch.inference_mode()
def find_differences(
    model: Transformer,
    caption: Tensor,
    config: DecodingConfig,
    sequential: Tensor,
    parallel: Tensor,
    precision: torch.dtype = torch.float32,
) -> list[Difference]:
    """Compare the (m, h, w) images of candidates 0 to m - 1 of a (1, T) caption, and measure where they differ.

    config: of parallel decoding; the sequential images have the same settings otherwise.
    """
    tokens, others = sequential.flatten(1), parallel.flatten(1)
    different = (tokens != others).any(dim=1).nonzero().squeeze(1)
    if not len(different):
        return []
    tokens, others = tokens[different], others[different]
    single = given_token_logits(model, caption, tokens, replace(config, decoding="sequential"), precision)
    windows = given_token_logits(model, caption, tokens, replace(config, decoding="parallel"), precision)
    rounding = torch.where(single.isfinite() & windows.isfinite(), single - windows, 0.0).abs().amax(dim=(1, 2))
    found = []
    for row, candidate in enumerate(different.tolist()):
        position = int((tokens[row] != others[row]).nonzero()[0])
        noise = gumbel_noise(candidate_noise_keys(config.seed, different[row : row + 1]), position, single.shape[-1])[0]
        sums, token, other = single[row, position] + noise, tokens[row, position], others[row, position]
        # in 16 bits, other images in the batch change the rounding of sequential decoding too
        if sums.max() - sums[token] > rounding[row]:
            raise ValueError(f"candidate {candidate} is not an image of sequential decoding with these settings")
        found.append(Difference(candidate, position, float(sums[token] - sums[other]), float(rounding[row])))
    return found


def given_token_logits(
    model: Transformer, caption: Tensor, tokens: Tensor, config: DecodingConfig, precision: torch.dtype
) -> Tensor:
    """Compute the logits, as they are sampled from, of every position of (m, I) images: (m, I, v)."""
    sampler = TokenSampler(DecodingSession(model, config, len(tokens), precision), caption, len(tokens))
    previous = torch.cat([torch.full_like(tokens[:, :1], model.sequence.start_of_image), tokens[:, :-1]], dim=1)
    size = 1 if sampler.parallel is None else sampler.parallel.size
    steps = [
        _step_logits(sampler, previous[:, start : start + size], start)[:, : tokens.shape[1] - start]
        for start in range(0, tokens.shape[1], size)
    ]
    logits = torch.cat(steps, dim=1)
    return process_logits(logits.flatten(0, 1), config).view_as(logits)


def _step_logits(sampler: TokenSampler, previous: Tensor, start: int) -> Tensor:
    """Compute the logits of one pass from (m, n) previous tokens: (m, n, v)."""
    previous = sampler.guidance.duplicate(previous)
    if sampler.parallel is None:
        logits = sampler.step(previous.squeeze(1), start).unsqueeze(1)
    else:
        missing = sampler.parallel.size - previous.shape[1]  # in the last window
        padded = torch.cat([previous, previous.new_zeros(len(previous), missing)], dim=1)
        logits = sampler.parallel.step(padded, torch.full((len(previous),), start))
    return sampler.guidance.combine(logits)
