"""Autoregressive sampling of image tokens: prefill the caption once, then sample token by token for all candidates.

Known tokens before the first one that is sampled are prefilled, too (`Transformer.prefill_image`).
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from dalle.models.cpu_linear import pack_linear_layers
from dalle.models.transformer.model import Transformer
from dalle.precision import without_autocast
from dalle.sampling.cuda_graphs import decoding_step
from dalle.sampling.decoding_choice import choose_method
from dalle.sampling.finite import check_finite
from dalle.sampling.guidance import Guidance
from dalle.sampling.gumbel_noise import candidate_noise_keys, gumbel_noise
from dalle.sampling.logits_processors import process_logits
from dalle.sampling.parallel_decode import DecodingCount, ParallelDecoder, window_step
from dalle.sampling.prefill import prefill_passes, prefill_sizes
from dalle.sampling.sampling_config import DecodingConfig
from dalle.sampling.token_guesses import TokenHistory

MASKED = -1  # canvas value of a token that is to be sampled
BATCH_SIZE = 64  # images decoded at a time if the config sets no batch size
DEFAULTS = DecodingConfig()

OnProgress = Callable[[float], None]
"""Progress callback, called after each token with the number of images completed by it. An exception stops sampling."""

OnTokens = Callable[[Tensor], None]
"""Token callback, called after each position, or each pass of parallel decoding, with the batch's images so far.

They are (captions, candidates, h, w) on the model's device, `MASKED` where not sampled yet. It must not change them.
"""


class SampledBatch(NamedTuple):
    """Image tokens that were sampled together, and their place among all captions and candidates."""

    caption: int  # index of the first caption
    candidate: int  # index of the first candidate of each caption
    tokens: Tensor  # (captions, candidates, h, w) int64 on the CPU


def sample_all_tokens(
    model: Transformer, captions: Tensor, candidates: int, config: DecodingConfig = DEFAULTS, **options: Any
) -> Tensor:
    """Sample the tokens of all images, for tests and benchmarks; the pipeline takes one batch at a time.

    (captions, T) -> (captions, candidates, h, w) int64. Takes the options of `sample_batches`.
    """
    tokens = torch.empty(len(captions), candidates, model.sequence.grid, model.sequence.grid, dtype=torch.int64)
    for batch in sample_batches(model, captions, candidates, config, **options):
        rows, columns = batch.tokens.shape[:2]
        tokens[batch.caption : batch.caption + rows, batch.candidate : batch.candidate + columns] = batch.tokens
    return tokens


@torch.inference_mode()
def sample_batches(
    model: Transformer,
    captions: Tensor,
    candidates: int,
    config: DecodingConfig = DEFAULTS,
    *,
    candidate_offset: int | Sequence[int] = 0,
    canvas: Tensor | None = None,
    precision: torch.dtype = torch.float32,
    recompute_kv: bool = False,
    on_progress: OnProgress | None = None,
    on_tokens: OnTokens | None = None,
    count: DecodingCount | None = None,
) -> Iterator[SampledBatch]:
    """Sample images for each caption, one batch at a time. A batch holds several captions if all their candidates fit.

    Candidates are numbered from `candidate_offset`. The tokens of candidate i depend only on its caption, its canvas,
    the logits processors, the guidance, the precision and (seed, i), not on the other images of its batch, unless two
    tokens tie to within rounding. Between two batches no memory is held except the images.

    captions: (captions, T) int64, as `model.sequence.pad_captions` returns them.
    config: a guidance other than 1 decodes each image twice, see `dalle.sampling.guidance`; `batch_size` None is 64.
    candidate_offset: number of the first candidate, the same for all captions or one for each.
    canvas: (h, w), (candidates, h, w) or (captions, candidates, h, w) integers; tokens other than `MASKED` are kept.
    precision: of the linear layers on a CPU, see `dalle.models.cpu_linear`; on other devices the model's own is used.
    recompute_kv: use caches that take less memory and slightly more time, see `Transformer.new_cache`; sequential
        decoding only.
    on_tokens: shows the images while they are sampled.
    count: the images, tokens and passes of decoding are added to it.

    Raises:
        ValueError: no candidates, a canvas of floats, of another size or with unknown tokens, a window larger than the
            image, `recompute_kv` with parallel decoding, or a model whose first logits are NaN or infinite.
    """
    numbers = candidate_numbers(candidate_offset, len(captions), candidates)
    canvases = expand_canvas(canvas, len(captions), candidates, model)
    session = DecodingSession(model, config, numbers.numel(), precision, recompute_kv, count)
    for batch in batch_slices(len(captions), candidates, session.batch_size):
        sampler = TokenSampler(session, captions[batch[0]], numbers[batch].shape[1])
        tokens = sampler.sample(
            candidate_noise_keys(config.seed, numbers[batch]), canvases[batch], on_progress, on_tokens
        )
        del sampler  # free its memory before the caller decodes and ranks the images, and before the next one is made
        yield SampledBatch(batch[0].start, batch[1].start, tokens)


def candidate_numbers(candidate_offset: int | Sequence[int], captions: int, candidates: int) -> Tensor:
    """Number the candidates of each caption from `candidate_offset`: (captions, candidates) int64.

    Raises:
        ValueError: no candidates, or not one offset for each caption.
    """
    if candidates < 1:
        raise ValueError(f"candidates={candidates} must be at least 1")
    return torch.tensor(expand_offset(candidate_offset, captions)).unsqueeze(1) + torch.arange(candidates)


def expand_offset(candidate_offset: int | Sequence[int], captions: int) -> list[int]:
    """Return the number of the first candidate of each caption. Integers of numpy and torch are accepted.

    Raises:
        ValueError: not one offset for each caption.
    """
    try:
        return [operator.index(candidate_offset)] * captions  # pyright: ignore[reportArgumentType]
    except TypeError:  # one for each caption
        offsets = [operator.index(offset) for offset in candidate_offset]  # pyright: ignore[reportGeneralTypeIssues]
    if len(offsets) != captions:
        raise ValueError(f"candidate_offset has {len(offsets)} numbers for {captions} captions")
    return offsets


def batch_slices(captions: int, candidates: int, batch_size: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of captions and of candidates that cover all images in order, at most `batch_size` images each."""
    captions_per_batch = max(1, batch_size // candidates)
    for caption in range(0, captions, captions_per_batch):
        for candidate in range(0, candidates, batch_size):
            yield slice(caption, caption + captions_per_batch), slice(candidate, candidate + batch_size)


class DecodingSession:
    """Model prepared for decoding, with the settings and counts that the samplers of all batches share."""

    @torch.inference_mode()
    def __init__(
        self,
        model: Transformer,
        config: DecodingConfig,
        num_images: int,
        precision: torch.dtype = torch.float32,
        recompute_kv: bool = False,
        count: DecodingCount | None = None,
    ):
        """See `sample_batches` for the arguments. num_images: number of images that all samplers will sample."""
        self.recompute_kv = recompute_kv
        self.is_float32 = model.dtype == precision == torch.float32
        self.batch_size = BATCH_SIZE if config.batch_size is None else config.batch_size
        self.device = model.image_head.weight.device
        # `DALLE.sample_batches` takes any config, and the studio calls it with decoding=auto for batches of several
        # sizes. If `DALLE.stream` has chosen before, this keeps its choice
        choice = choose_method(config, num_images, model.sequence.image_positions, self.device, precision)
        self.config = config = choice.apply(config)
        self.window = choice.window if choice.decoding == "parallel" else None  # None: sequential decoding
        if self.window is not None and recompute_kv:
            raise ValueError(
                "recompute_kv=True needs decoding=sequential, as parallel decoding caches keys and values; "
                "set one of the two, or a smaller batch_size"
            )
        self.history = TokenHistory()
        self.count = DecodingCount() if count is None else count
        rows = (2 if config.guided else 1) * (self.window or 1)  # decoded at a time for each image
        with without_autocast(self.device.type):
            self.model = pack_linear_layers(model, rows * min(self.batch_size, num_images), precision)
            self.guidance = Guidance(self.model, config, self.device)


class TokenSampler:
    """Sampler of the image tokens of a batch of captions, one position at a time for all candidates.

    Allocates the captions' keys and values, a KV cache, and on a GPU a CUDA graph. `sample` can be called repeatedly.
    """

    @torch.inference_mode()
    def __init__(self, session: DecodingSession, captions: Tensor, candidates: int):
        """captions: (captions, T) int64. candidates: number of images of each."""
        self.config, self.device, self.count = session.config, session.device, session.count
        self.model, self.sequence = session.model, session.model.sequence
        self.is_float32, self.guidance = session.is_float32, session.guidance
        with without_autocast(self.device.type):  # the caller's autocast would round the logits
            prefix = self.guidance.extend_prefix(session.model.prefill(captions.to(self.device)))
            self.parallel = None
            if session.window is not None:
                step = window_step(session.model, prefix, candidates, session.window)
                self.parallel = ParallelDecoder(
                    self.sequence, self.config, self.guidance, step, session.window, session.history, session.count
                )
            else:
                self.step = decoding_step(session.model, prefix, candidates, session.recompute_kv)

    @torch.inference_mode()
    def sample(
        self,
        noise_keys: Tensor,
        canvas: Tensor,
        on_progress: OnProgress | None = None,
        on_tokens: OnTokens | None = None,
    ) -> Tensor:
        """Sample: (captions, m) noise keys, (captions, m, h, w) canvas -> (captions, m, h, w) images on the CPU."""
        images = rearrange(canvas.to(self.device), "captions m h w -> (captions m) (h w)").clone(
            memory_format=torch.contiguous_format
        )
        grids = images.view(canvas.shape)  # the same memory
        with without_autocast(self.device.type):
            if self.parallel is not None:
                masked = images == MASKED
                show = None if on_tokens is None else partial(_show_certain, on_tokens, grids, masked)
                self.parallel.sample(images, masked, noise_keys.flatten().to(self.device), on_progress, show)
            else:
                show = None if on_tokens is None else partial(on_tokens, grids)
                self._sample_masked(images, noise_keys.flatten().to(self.device), on_progress, show)
        return grids.cpu()

    def _sample_masked(
        self, images: Tensor, noise_keys: Tensor, on_progress: OnProgress | None, show: Callable[[], None] | None
    ) -> None:
        """Sample each `MASKED` token of (b, h * w) images, in place, with the noise of their (b,) keys."""
        masked = images == MASKED
        any_masked = masked.any(dim=0).tolist()
        steps = max((position + 1 for position, is_masked in enumerate(any_masked) if is_masked), default=0)

        num_known = any_masked.index(True) if steps else 0
        inputs = self.sequence.image_inputs(images[:, : num_known + 1])
        first = self._prefill(inputs[:, :num_known])
        previous = inputs[:, first]
        for position in range(first, steps):
            logits = self.step(self.guidance.duplicate(previous), position)
            if position == first:  # once, as reading the answer synchronises with the device
                check_finite(logits, "the transformer computes logits")
            logits = self.guidance.combine(logits)  # (b, v)
            if any_masked[position]:
                noise = gumbel_noise(noise_keys, position, logits.shape[-1])
                sampled = (process_logits(logits, self.config) + noise).argmax(dim=-1)
                images[:, position] = torch.where(masked[:, position], sampled, images[:, position])
            previous = images[:, position]
            if show is not None:
                show()
            if on_progress is not None:
                on_progress(len(images) / (steps - first))
        self.count.images += len(images)
        self.count.tokens += (steps - first) * len(images)
        self.count.passes += (steps - first) * len(images)

    def _prefill(self, inputs: Tensor) -> int:
        """Fill the cache with the first n positions, from (b, n) inputs. Returns the position where decoding starts: n.

        Returns 0 without filling it if that takes as many passes as decoding does, which depends on memory, and in 16
        bits, where chunks round differently, so that other tokens might be sampled.
        """
        cache, positions = self.step.cache, inputs.shape[1]
        inputs = self.guidance.duplicate(inputs)
        sizes = prefill_sizes(self.model, cache, positions)
        if not self.is_float32 or 0 in sizes or prefill_passes(cache, inputs, *sizes) >= positions:
            return 0
        self.model.prefill_image(inputs, cache, *sizes)
        return positions


def _show_certain(on_tokens: OnTokens, images: Tensor, masked: Tensor, starts: Tensor) -> None:
    """Call `on_tokens` with images, (..., h, w), in which tokens that parallel decoding only guessed are `MASKED`.

    masked: (b, h * w), tokens that are sampled. starts: (b,), number of tokens of each image that are certain.
    """
    guessed = masked & (torch.arange(masked.shape[1], device=masked.device) >= starts.unsqueeze(1))
    on_tokens(torch.where(guessed.view(images.shape), MASKED, images))


def expand_canvas(canvas: Tensor | None, captions: int, candidates: int, model: Transformer) -> Tensor:
    """Check a canvas and expand it: (captions, candidates, h, w) int64, `MASKED` for tokens to sample.

    Raises:
        ValueError: a canvas of floats, of another size than the model's, for other numbers of images, or with unknown
            tokens.
    """
    grid, vocabulary = model.sequence.grid, model.sequence.image_vocabulary
    if canvas is None:
        canvas = torch.full((grid, grid), MASKED)
    if canvas.is_floating_point():
        raise ValueError(f"the canvas has values of {canvas.dtype}; give tokens as integers")
    canvas = canvas.cpu().long()
    if canvas.shape[-2:] != (grid, grid):
        raise ValueError(f"the canvas is {tuple(canvas.shape[-2:])} tokens, but the model samples {grid} x {grid}")
    images = (captions, candidates)
    if canvas.shape[:-2] not in ((), images[1:], images):
        raise ValueError(
            f"the canvas is for {tuple(canvas.shape[:-2])} images, but captions={captions} and "
            f"candidates={candidates}; give one for all, one for each candidate, or one for each of each caption"
        )
    if canvas.min() < MASKED or canvas.max() >= vocabulary:
        raise ValueError(
            f"the canvas has tokens from {canvas.min()} to {canvas.max()}; "
            f"use 0 to {vocabulary - 1}, or {MASKED} for tokens to sample"
        )
    return canvas.expand(captions, candidates, grid, grid)
