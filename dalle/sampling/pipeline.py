"""Text-to-image pipeline: tokenizer, transformer, dVAE decoder and CLIP reranking (Sec. 2.6)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dalle import checkpoint
from dalle.checkpoint import CheckpointError
from dalle.models.clip.model import CLIP
from dalle.models.dvae.model import DiscreteVAE
from dalle.models.mixed_precision import to_mixed_precision
from dalle.models.transformer.model import Transformer
from dalle.precision import use_exact_float32
from dalle.sampling import decode, fill
from dalle.sampling.canvas import Canvas, Original, original
from dalle.sampling.chunks import Chunk, chunk_for
from dalle.sampling.parts import find_parts
from dalle.sampling.precision import resolve
from dalle.sampling.progress import Progress, Stopped
from dalle.sampling.rerank import Reranker, Scorer, reference_captions, reranker_for
from dalle.sampling.results import Choice, Result, pictures
from dalle.sampling.sampling_config import Config, RerankConfig, SamplingConfig
from dalle.tokenizer import CaptionTokenizer, words_of

DEFAULTS = SamplingConfig()


class DALLE:
    """Text-to-image pipeline. Build it from checkpoints with `load`, then call `generate`.

    Raises:
        ValueError: components that do not fit each other.
    """

    def __init__(
        self,
        dvae: DiscreteVAE,
        transformer: Transformer,
        tokenizer: CaptionTokenizer,
        clip: Scorer | None = None,
        caption_dropout: float = 0.0,
        precision: torch.dtype = torch.float32,
        guidance: float = 1.0,
        words: Sequence[str] = (),
    ):
        """caption_dropout: share of training captions that were replaced by the empty caption. Classifier-free guidance
            needs a share above 0.
        guidance: default scale of classifier-free guidance, read from the checkpoint; 1 in the paper.
        words: words of the training captions, as far as the checkpoint lists them.
        precision: number format of the transformer's linear layers on a CPU; on a GPU their weights' format is used.
        """
        if dvae.vocabulary != transformer.sequence.image_vocabulary:
            raise ValueError(
                f"the dVAE has {dvae.vocabulary} codes and the transformer draws "
                f"{transformer.sequence.image_vocabulary}; they must have been trained together"
            )
        if tokenizer.vocabulary > transformer.sequence.text_vocabulary:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocabulary} entries and the transformer reads "
                f"{transformer.sequence.text_vocabulary}; they must have been trained together"
            )
        self.dvae = dvae
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.clip = clip
        self.caption_dropout = caption_dropout
        self.precision = precision
        self.guidance = guidance
        self.words = frozenset(words)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        dvae: str | Path | None = None,
        clip: str | Path | None = None,
        precision: str = "auto",
    ) -> "DALLE":
        """Load from a folder with dvae/, transformer/ and optionally clip/, or from a transformer checkpoint.

        A transformer checkpoint records the digest and the path of the dVAE that it was trained with; `dvae`
        overrides the path, and `clip` is the folder of a CLIP. `precision` of the transformer is "float32", "bfloat16",
        or "auto": bfloat16 on a GPU.

        Raises:
            CheckpointError: a component is missing, unreadable, or not the one the transformer was trained with.
        """
        device = torch.device(device)
        dtype = resolve(precision, device)
        parts = find_parts(folder, dvae, clip)
        try:
            tokenizer = CaptionTokenizer.load(parts["transformer"] / checkpoint.TOKENIZER)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        scorer = CLIP.load(parts["clip"]).to(device) if "clip" in parts else None
        _, meta = checkpoint.read_config(parts["transformer"], "transformer")
        transformer = Transformer.load(parts["transformer"])
        if device.type != "cpu":  # a CPU keeps float32 weights: only packed layers are faster in bfloat16
            use_exact_float32()
            transformer = to_mixed_precision(transformer, dtype)
        return cls(
            DiscreteVAE.load(parts["dvae"]).to(device),
            transformer.to(device),
            tokenizer,
            scorer,
            meta.get("caption_dropout", 0.0),
            dtype,
            meta.get("guidance", 1.0),
            meta.get("caption_words", ()),
        )

    def generate(
        self,
        caption: str,
        config: SamplingConfig = DEFAULTS,
        *,
        canvas: Canvas | Tensor | None = None,
        first: int = 0,
        progress: bool = False,
        **settings: Any,
    ) -> Result:
        """Sample `candidates` images of `caption` and return the best `keep` by `rerank`, by default CLIP.

        The paper samples 512 at temperature 1 without guidance (Sec. 2.6). Candidate i of a seed is the same image
        whatever `candidates`, `keep` and `batch_size` are.

        settings: fields of `SamplingConfig` by name, such as candidates=64, keep=8, seed=1; they override `config`.
        canvas: tokens to keep and cells to sample, as `dalle.sampling.edits` builds; None: sample all cells.
        first: number of the first candidate.
        progress: show a progress bar on a terminal.

        Raises:
            TypeError: an unknown setting; the message suggests the nearest name.
            ValueError: an empty or too long caption, a setting out of its range, or guidance with a transformer that
                was trained without empty captions.
        """
        config = _changed(config, settings, beside=("canvas", "first", "progress"))
        (result,) = self.stream([caption], config, canvas=canvas, first=first, progress=progress)
        return result

    def generate_many(
        self,
        captions: Sequence[str],
        config: SamplingConfig = DEFAULTS,
        *,
        canvas: Canvas | Tensor | None = None,
        first: int | Sequence[int] = 0,
        truncate: bool = False,
        progress: bool = False,
        **settings: Any,
    ) -> list[Result]:
        """Call `generate` for several captions, which share batches. See `stream` for the options."""
        config = _changed(config, settings, beside=("canvas", "first", "truncate", "progress"))
        return list(self.stream(captions, config, canvas=canvas, first=first, truncate=truncate, progress=progress))

    def stream(
        self,
        captions: Sequence[str],
        config: SamplingConfig = DEFAULTS,
        *,
        canvas: Canvas | Tensor | None = None,
        first: int | Sequence[int] = 0,
        truncate: bool = False,
        progress: bool = False,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Result]:
        """Yield the result of each caption in turn, as soon as its candidates are sampled; none is held.

        first: number of the first candidate, one for all captions or one for each.
        truncate: cut a caption that is too long, as training does; otherwise raise `ValueError`.
        stop: called after each token. Once it returns True, sampling stops; the finished candidates of the current
            caption, if any, are ranked and yielded last.
        """
        config = self.with_guidance(config)
        ids = self.tokenize(captions, truncate)
        choice = Choice(self.dvae, config, self.reranker(ids, config), canvas)
        firsts = [first] * len(captions) if isinstance(first, int) else first
        recompute_kv = False
        if config.batch_size is None:
            chunk = self.chunk(len(captions), config)
            config, recompute_kv = replace(config, batch_size=chunk.images), chunk.needs.recompute_kv
        drawn: list[Tensor] = []  # finished candidates of the current caption
        present = 0
        with Progress(len(captions) * config.candidates, progress, stop) as advance:
            options = {
                "first": firsts,
                "precision": self.precision,
                "recompute_kv": recompute_kv,
                "on_progress": advance,
            }
            try:
                for batch in self._batches(ids, config, canvas, options):
                    for present, images in enumerate(batch.images, batch.caption):
                        drawn.append(images)
                        if batch.candidate + len(images) == config.candidates:
                            yield choice(captions[present], ids[present], torch.cat(drawn), firsts[present])
                            drawn = []
            except Stopped:
                if drawn:
                    yield choice(captions[present], ids[present], torch.cat(drawn), firsts[present])

    def chunk(self, captions: int, config: SamplingConfig) -> Chunk:
        """Return the number of images that `stream` decodes at a time.

        Raises:
            ValueError: memory does not hold one image.
        """
        return chunk_for(self.transformer, captions, self.with_guidance(config), self.precision)

    def with_guidance(self, config: Config) -> Config:
        """Return `config` with the checkpoint's guidance scale if it sets none.

        Raises:
            ValueError: guidance with a transformer that was trained without empty captions.
        """
        guidance = self.guidance if config.guidance is None else config.guidance
        if guidance != 1 and not self.caption_dropout:
            raise ValueError(
                f"guidance={guidance} needs a transformer that knows the empty caption, and this one was trained "
                "without: train one with stage.caption_dropout=0.1, or leave guidance at 1"
            )
        return replace(config, guidance=guidance)

    def tokenize(self, captions: Sequence[str], truncate: bool = False) -> Tensor:
        """Encode captions as the transformer's text input: (captions, T) int64.

        Raises:
            ValueError: a caption that is empty, or too long unless `truncate`.
        """
        rows = []
        for caption in captions:
            try:
                rows.append(self.transformer.sequence.pad_captions([self.tokenizer.encode(caption)], truncate))
            except ValueError as error:
                raise ValueError(f"{caption!r}: {error}") from error
        return torch.cat(rows)

    def unknown_words(self, captions: Sequence[str]) -> list[str]:
        """Return the words that no training caption has, sorted; empty if the checkpoint lists no training words."""
        asked = set().union(*map(words_of, captions)) if self.words else set()
        return sorted(asked - self.words)

    def pictures(self, tokens: Tensor) -> list[Image.Image]:
        """Decode image tokens with the dVAE: (b, h, w) int64 -> b images."""
        return pictures(self.dvae, tokens)

    def original(self, image: Image.Image) -> Original:
        """Crop, scale and encode an image of any size and mode for `dalle.sampling.edits`."""
        return original(image, self.dvae, self.transformer.sequence.grid)

    def reranker(self, captions: Tensor, config: RerankConfig = DEFAULTS) -> Reranker | None:
        """Build the reranker of (captions, T). Returns None if `config` asks for CLIP only and no CLIP is loaded.

        Raises:
            ValueError: a component or the reference captions that it needs are missing.
        """
        references = None
        if "caption_likelihood" in config.judges:
            given = self.tokenize(config.rerank_references, truncate=True) if config.rerank_references else None
            references = reference_captions(self.transformer.sequence, captions, given, self.caption_dropout > 0)
        return reranker_for(config, self.transformer, self.clip, references)

    def _batches(
        self, ids: Tensor, config: SamplingConfig, canvas: Canvas | Tensor | None, options: Mapping[str, Any]
    ) -> Iterator[decode.Batch]:
        if isinstance(canvas, Canvas):
            return fill.batches(self.transformer, ids, config.candidates, config, canvas=canvas, **options)
        return decode.batches(self.transformer, ids, config.candidates, config, canvas=canvas, **options)


def _changed(config: SamplingConfig, settings: Mapping[str, Any], beside: Sequence[str]) -> SamplingConfig:
    """Return `config` with some settings changed. Raises TypeError if it is of another type, or as `changed` does."""
    if not isinstance(config, SamplingConfig):
        raise TypeError(f"config must be a SamplingConfig, not {config!r}; give settings by name, as candidates=64")
    return config.changed(settings, beside)
