"""Exact parallel decoding: guess a window of tokens, verify it in one pass, keep the tokens that are certain.

A token is `argmax(logits + Gumbel noise)`, a function of the tokens before it, since the noise depends on (seed,
candidate, position) alone. One pass computes this function for a window of guessed tokens. Its first output is right,
and each next one is right if all guesses before it were. These are kept; the outputs after them become the guesses of
the next pass (Jacobi iteration). The images are those of one-token decoding, in fewer passes.

Sources: Wiggers and Hoogeboom 2020, "Predictive sampling with forecasting autoregressive models"; Teng et al. 2024,
"Accelerating auto-regressive text-to-image generation with training-free speculative Jacobi decoding".
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dalle.models.transformer.kv_cache import PrefixCache
from dalle.models.transformer.model import Transformer
from dalle.models.transformer.sequence import SequenceLayout
from dalle.sampling.finite import check_finite
from dalle.sampling.guidance import Guidance
from dalle.sampling.gumbel_noise import gumbel_noise
from dalle.sampling.logits_processors import process_logits
from dalle.sampling.sampling_config import DecodingConfig
from dalle.sampling.token_guesses import GUESSES, Context, TokenHistory

WindowStep = Callable[[Tensor, Tensor], Tensor]
"""(b, n) previous tokens, (b,) starts -> (b, n, v) logits: `Transformer.decode_window` with its cache."""


@dataclass
class DecodingCount:
    """Images, tokens and passes of decoding, added up over all images.

    A pass of sequential decoding is a token. It does not count known tokens that `Transformer.prefill_image` processes.
    """

    images: int = 0
    tokens: int = 0  # tokens that passes kept
    passes: int = 0  # passes that kept at least one token, counted for each image of a batch

    @property
    def tokens_per_pass(self) -> float:
        return self.tokens / max(1, self.passes)


def recorded_settings(config: DecodingConfig, precision: torch.dtype) -> dict[str, str | int | None]:
    """Return the settings of parallel decoding that images depend on.

    These are all of them in 16 bits, where windows round differently, and none in float32 or in sequential decoding.
    `decoding=auto` is sequential in 16 bits, see `dalle.sampling.decoding_choice`.
    """
    if config.decoding != "parallel" or precision == torch.float32:
        return {}
    return {"decoding": config.decoding, "window": config.window, "guess": config.guess}


def window_step(model: Transformer, prefix: PrefixCache, candidates: int, size: int) -> WindowStep:
    """Create the step of `ParallelDecoder`, with a new cache for `candidates` images of each caption.

    Raises:
        ValueError: a window larger than the image.
    """
    return partial(model.decode_window, cache=model.new_window_cache(prefix, candidates, size))


class ParallelDecoder:
    """Decoder that samples the tokens of a batch of images in passes over windows of guessed tokens."""

    def __init__(
        self,
        sequence: SequenceLayout,
        config: DecodingConfig,
        guidance: Guidance,
        step: WindowStep,
        size: int,
        history: TokenHistory,
        count: DecodingCount,
    ):
        """Decode with windows of `size` tokens.

        history: cells that guesses are based on; the cells of this batch are added.
        count: the passes of this batch are added to it.
        """
        self.sequence, self.config, self.guidance = sequence, config, guidance
        self.step, self.size, self.history = step, size, history
        self.guess = GUESSES[config.guess]
        self.count = count

    def sample(
        self,
        images: Tensor,
        masked: Tensor,
        noise_keys: Tensor,
        on_progress: Callable[[float], None] | None,
        show: Callable[[Tensor], None] | None = None,
    ) -> None:
        """Sample each masked token of (b, I) images, in place, with the noise of their (b,) keys.

        on_progress: called after each pass with the number of images completed by it.
        show: called after each pass with the number of tokens of each image that are certain, (b,); others are guesses.
        """
        size, device = self.size, images.device
        steps = int(masked.any(dim=0).nonzero().max()) + 1 if masked.any() else 0  # later tokens are all given
        starts = torch.zeros_like(noise_keys)  # (b,) number of tokens of each image that are certain
        guessed = torch.zeros_like(noise_keys)  # (b,) number of tokens that are certain or guessed
        noise = torch.empty(len(images), size, self.sequence.image_vocabulary, device=device)
        offsets, rows = torch.arange(size, device=device), torch.arange(len(images), device=device)

        checked = False
        while (starts < steps).any():
            self._guess_window(images, masked, noise_keys, noise, guessed, (starts + size).clamp(max=steps))
            guessed = (starts + size).clamp(max=steps)
            begins = starts.clamp(max=steps - 1)  # finished images repeat their last position
            positions = begins.unsqueeze(1) + offsets  # (b, size)
            cells = positions.clamp(max=images.shape[1] - 1)
            inside = (positions < steps) & (starts < steps).unsqueeze(1)
            logits = self._logits(self._previous(images, positions), begins)
            if not checked:
                # of given tokens; those after them are guesses
                check_finite(logits[:, 0], "the transformer computes logits")
                checked = True
            window_noise = noise[rows.unsqueeze(1), positions % size]
            outputs = (process_logits(logits.flatten(0, 1), self.config) + window_noise.flatten(0, 1)).argmax(dim=-1)
            guesses = images.gather(1, cells)
            outputs = torch.where(masked.gather(1, cells), outputs.view_as(guesses), guesses)

            right = (outputs == guesses).long().cumprod(dim=1)
            kept = (1 + right[:, :-1].sum(dim=1)).minimum(steps - starts)  # (b,) tokens that are now certain
            images[rows.unsqueeze(1).expand_as(cells)[inside], cells[inside]] = outputs[inside]
            certain = offsets < kept.unsqueeze(1)
            self._add_to_history(images, rows.unsqueeze(1).expand_as(cells)[certain], positions[certain])
            self.count.passes += int((kept > 0).sum())
            self.count.tokens += int(kept.sum())
            starts = starts + kept
            if show is not None:
                show(starts)
            if on_progress is not None:
                on_progress(int(kept.sum()) / steps)
        self.count.images += len(images)

    def _logits(self, previous: Tensor, starts: Tensor) -> Tensor:
        """Compute the logits of each window, with guidance: (b, n), (b,) -> (b, n, v)."""
        return self.guidance.combine(self.step(self.guidance.duplicate(previous), self.guidance.duplicate(starts)))

    def _previous(self, images: Tensor, positions: Tensor) -> Tensor:
        """Return the token before each position, (b, n); the start-of-image token for position 0."""
        last = images.shape[1] - 1
        previous = images.gather(1, (positions - 1).clamp(0, last))
        return torch.where(positions == 0, self.sequence.start_of_image, previous)

    def _guess_window(
        self, images: Tensor, masked: Tensor, noise_keys: Tensor, noise: Tensor, guessed: Tensor, ends: Tensor
    ) -> None:
        """Guess the masked tokens from `guessed` to `ends`, (b,) each, in place, and store the noise of these cells."""
        for offset in range(int((ends - guessed).max())):
            rows = (guessed + offset < ends).nonzero().squeeze(1)
            positions = (guessed + offset)[rows]
            noise[rows, positions % noise.shape[1]] = fresh = gumbel_noise(noise_keys[rows], positions, noise.shape[2])
            context = Context(positions, *self._neighbours(images, rows, positions), fresh)
            guess = self.guess(context, self.history)
            images[rows, positions] = torch.where(masked[rows, positions], guess, images[rows, positions])

    def _neighbours(self, images: Tensor, rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens to the left of n cells and above them, -1 where there is none: (n,) each."""
        left, above = positions - 1, positions - self.sequence.grid
        return (
            torch.where(left < 0, -1, images[rows, left.clamp(min=0)]),
            torch.where(above < 0, -1, images[rows, above.clamp(min=0)]),
        )

    def _add_to_history(self, images: Tensor, rows: Tensor, positions: Tensor) -> None:
        if self.config.guess == "counts":
            self.history.add(positions, images[rows, positions], *self._neighbours(images, rows, positions))
