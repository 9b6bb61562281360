"""Captions to pictures, best first: dVAE, transformer, tokenizer and CLIP put together (Sec. 2.6)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dalle import checkpoint
from dalle.checkpoint import CheckpointError
from dalle.models.clip import CLIP
from dalle.models.dvae import DiscreteVAE
from dalle.models.mixed_precision import to_mixed_precision
from dalle.models.transformer import Transformer
from dalle.precision import use_exact_float32
from dalle.sampling import decode, fill
from dalle.sampling.canvas import Canvas, Original, original
from dalle.sampling.chunks import Chunk, chunk_for
from dalle.sampling.filters import UNFILTERED, Filters
from dalle.sampling.parts import find_parts
from dalle.sampling.precision import resolve
from dalle.sampling.progress import Progress, Stopped
from dalle.sampling.rerank import (
    BY_CLIP,
    USUAL,
    Rerank,
    Reranker,
    RerankWeights,
    Scorer,
    reference_captions,
    reranker_for,
)
from dalle.sampling.results import Choice, Result, pictures
from dalle.tokenizer import CaptionTokenizer, words_of


class DALLE:
    """Draws pictures for captions. `load` puts one together from checkpoints; `generate` is what it does.

    Raises:
        ValueError: parts that do not fit each other.
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
        """
        caption_dropout: the share of empty captions that the transformer was trained on; guidance needs some.
        guidance: what is drawn with where nothing else is asked for; the checkpoint says, 1 in the paper.
        words: of the training captions, as far as the checkpoint lists them.
        precision: in which a CPU computes the transformer's linear layers; on a GPU the format of their weights.
        """
        if dvae.vocabulary != transformer.stream.image_vocabulary:
            raise ValueError(
                f"the dVAE has {dvae.vocabulary} codes and the transformer draws "
                f"{transformer.stream.image_vocabulary}; they must have been trained together"
            )
        if tokenizer.vocabulary > transformer.stream.text_vocabulary:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocabulary} entries and the transformer reads "
                f"{transformer.stream.text_vocabulary}; they must have been trained together"
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
        """From a folder with dvae/, transformer/ and perhaps clip/, or from a transformer's checkpoint alone.

        A transformer's checkpoint says which dVAE it was trained on and where that lay; `dvae` and `clip` say
        where to look instead. `precision` of the transformer is float32, bfloat16, or "auto": bfloat16 on a GPU.
        Raises `CheckpointError` when a part is missing, broken or another one.
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
        if device.type != "cpu":  # where the weights stay as they are: only packed layers are faster in bfloat16
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
        candidates: int = 64,
        keep: int = 8,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        guidance: float | None = None,
        seed: int = 0,
        first: int = 0,
        batch_size: int | None = None,
        canvas: Canvas | Tensor | None = None,
        rerank: str = "clip",
        rerank_weights: RerankWeights = USUAL,
        rerank_references: Sequence[str] = (),
        progress: bool = False,
    ) -> Result:
        """Draw `candidates` pictures of `caption` and keep the `keep` that CLIP finds to fit it best.

        The paper draws 512 at temperature 1 without guidance (Sec. 2.6). Candidate i of a seed is the same picture
        whatever `candidates`, `keep` and `batch_size` (images decoded at a time; None: what memory allows) are;
        `first` is the number of the first one. `guidance` (None: the checkpoint's own) and `canvas` are described at
        `dalle.sampling.decode.batches`, the filters at `dalle.sampling.filters.Filters`, and what else than
        CLIP may choose at `dalle.sampling.rerank`. With `progress` a bar is shown on a terminal.

        Raises:
            ValueError: an empty or too long caption, keep > candidates, a setting out of its range, or guidance of
                a transformer that was trained without empty captions.
        """
        (result,) = self.stream(
            [caption],
            candidates,
            keep,
            Filters(temperature, top_k, top_p, min_p),
            guidance,
            seed,
            first,
            batch_size,
            canvas,
            Rerank(rerank, rerank_weights, rerank_references),
            progress=progress,
        )
        return result

    def generate_many(
        self, captions: Sequence[str], candidates: int = 64, keep: int = 8, **settings: Any
    ) -> list[Result]:
        """`generate` for several captions, which share batches: `stream`, whose other settings it takes, as a list."""
        return list(self.stream(captions, candidates, keep, **settings))

    def stream(
        self,
        captions: Sequence[str],
        candidates: int = 64,
        keep: int = 8,
        filters: Filters = UNFILTERED,
        guidance: float | None = None,
        seed: int = 0,
        first: int | Sequence[int] = 0,
        batch_size: int | None = None,
        canvas: Canvas | Tensor | None = None,
        rerank: Rerank = BY_CLIP,
        memory: str = "auto",
        truncate: bool = False,
        progress: bool = False,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Result]:
        """`generate` for each of many captions in turn, as soon as its pictures are drawn: they need not all be kept.

        `first` is one number for all captions, or one for each. Where there is no `batch_size`, `memory` limits it,
        see `dalle.sampling.chunks.chunk_for`. With `truncate` a caption too long is cut, as in
        training. When `stop` says so, drawing ends within one token; what was drawn of the present caption by then
        is ranked and comes last, if there is any.
        """
        if candidates < 1:
            raise ValueError(f"candidates={candidates} draws nothing; use at least 1")
        if not 1 <= keep <= candidates:
            raise ValueError(f"keep={keep} of candidates={candidates} cannot be kept; use 1 to {candidates}")
        guidance = self._guidance(guidance)
        ids = self.tokenize(captions, truncate)
        choice = Choice(self.dvae, keep, self.reranker(ids, rerank), canvas)
        firsts = [first] * len(captions) if isinstance(first, int) else first
        compact = False
        if batch_size is None:
            chunk = self.chunk(len(captions), candidates, guidance, memory)
            batch_size, compact = chunk.images, chunk.needs.compact
        drawn: list[Tensor] = []  # of the present caption
        present = 0
        with Progress(len(captions) * candidates, progress, stop) as advance:
            drawing = {
                "filters": filters,
                "guidance": guidance,
                "seed": seed,
                "first": firsts,
                "batch_size": batch_size,
                "precision": self.precision,
                "compact": compact,
                "on_progress": advance,
            }
            try:
                for batch in self._batches(ids, candidates, canvas, drawing):
                    for present, images in enumerate(batch.images, batch.caption):
                        drawn.append(images)
                        if batch.candidate + len(images) == candidates:
                            yield choice(captions[present], ids[present], torch.cat(drawn), firsts[present])
                            drawn = []
            except Stopped:
                if drawn:
                    yield choice(captions[present], ids[present], torch.cat(drawn), firsts[present])

    def chunk(self, captions: int, candidates: int, guidance: float | None = None, memory: str = "auto") -> Chunk:
        """How many images `stream` decodes at a time. Raises `ValueError` where memory does not hold one."""
        return chunk_for(self.transformer, captions, candidates, self._guidance(guidance), memory, self.precision)

    def tokenize(self, captions: Sequence[str], truncate: bool = False) -> Tensor:
        """(captions, T) int64, as the transformer reads them.

        Raises `ValueError` for a caption that is empty, or too long unless `truncate`.
        """
        rows = []
        for caption in captions:
            try:
                rows.append(self.transformer.stream.captions([self.tokenizer.encode(caption)], truncate))
            except ValueError as error:
                raise ValueError(f"{caption!r}: {error}") from error
        return torch.cat(rows)

    def unknown_words(self, captions: Sequence[str]) -> list[str]:
        """Words that no training caption had, in alphabetical order; none where the checkpoint does not list those."""
        asked = set().union(*map(words_of, captions)) if self.words else set()
        return sorted(asked - self.words)

    def pictures(self, tokens: Tensor) -> list[Image.Image]:
        """The pictures that image tokens stand for: (b, h, w) int64 -> b of them."""
        return pictures(self.dvae, tokens)

    def original(self, image: Image.Image) -> Original:
        """A picture to edit, of any size and mode, as the models see it: `dalle.sampling.edits` make canvases of it."""
        return original(image, self.dvae, self.transformer.stream.grid)

    def reranker(self, captions: Tensor, rerank: Rerank = BY_CLIP) -> Reranker | None:
        """What ranks candidates of these (captions, T) in the way of `rerank`; None: nothing does, without a CLIP.

        Raises `ValueError` where a part or the references for it are missing.
        """
        references = None
        if "caption_likelihood" in rerank.judges:
            given = self.tokenize(rerank.references, truncate=True) if rerank.references else None
            references = reference_captions(self.transformer.stream, captions, given, self.caption_dropout > 0)
        return reranker_for(rerank, self.transformer, self.clip, references)

    def _guidance(self, asked: float | None) -> float:
        guidance = self.guidance if asked is None else asked
        if guidance != 1 and not self.caption_dropout:
            raise ValueError(
                f"guidance={guidance} needs a transformer that knows the empty caption, and this one was trained "
                "without: train one with stage.caption_dropout=0.1, or leave guidance at 1"
            )
        return guidance

    def _batches(
        self, ids: Tensor, candidates: int, canvas: Canvas | Tensor | None, drawing: Mapping[str, Any]
    ) -> Iterator[decode.Batch]:
        if isinstance(canvas, Canvas):
            return fill.batches(self.transformer, ids, candidates, canvas=canvas, **drawing)
        return decode.batches(self.transformer, ids, candidates, canvas=canvas, **drawing)
