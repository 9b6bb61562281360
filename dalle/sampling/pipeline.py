"""Captions to pictures, best first: dVAE, transformer, tokenizer and CLIP put together (Sec. 2.6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from dalle import checkpoint
from dalle.checkpoint import CheckpointError
from dalle.models.clip import CLIP
from dalle.models.dvae import DiscreteVAE
from dalle.models.transformer import Transformer
from dalle.sampling.decode import generate
from dalle.sampling.filters import UNFILTERED, Filters
from dalle.sampling.rerank import Scorer, rank
from dalle.tokenizer import CaptionTokenizer


@dataclass(frozen=True)
class Result:
    """The pictures kept for one caption, best first; without a scorer in the order they were drawn."""

    caption: str
    images: list[Image.Image]
    scores: list[float] | None  # CLIP scores, or None where nothing scored them
    tokens: Tensor  # (keep, grid, grid) int64
    candidates: list[int]  # which candidate each picture is: with the seed, what it depends on


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
    ):
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

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        dvae: str | Path | None = None,
        clip: str | Path | None = None,
    ) -> "DALLE":
        """From a folder with dvae/, transformer/ and perhaps clip/, or from a transformer's checkpoint alone.

        A transformer's checkpoint says which dVAE it was trained on and where that lay; `dvae` and `clip` say
        where to look instead. Raises `CheckpointError` when a part is missing, broken or another one.
        """
        parts = find_parts(folder, dvae, clip)
        try:
            tokenizer = CaptionTokenizer.load(parts["transformer"] / checkpoint.TOKENIZER)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        scorer = CLIP.load(parts["clip"]).to(device) if "clip" in parts else None
        return cls(
            DiscreteVAE.load(parts["dvae"]).to(device),
            Transformer.load(parts["transformer"]).to(device),
            tokenizer,
            scorer,
        )

    def generate(
        self,
        caption: str,
        candidates: int = 64,
        keep: int = 8,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        first: int = 0,
        batch_size: int = 64,
        canvas: Tensor | None = None,
    ) -> Result:
        """Draw `candidates` pictures of `caption` and keep the `keep` that CLIP finds to fit it best.

        The paper draws 512 at temperature 1 (Sec. 2.6). Candidate i of a seed is the same picture whatever
        `candidates`, `keep` and `batch_size` (images decoded at a time) are; `first` is the number of the
        first one. `canvas` is described at `dalle.sampling.decode.generate`.

        Raises:
            ValueError: an empty or too long caption, keep > candidates, or a setting out of its range.
        """
        filters = Filters(temperature, top_k, top_p)
        return self.generate_many([caption], candidates, keep, filters, seed, first, batch_size, canvas)[0]

    def generate_many(
        self,
        captions: Sequence[str],
        candidates: int = 64,
        keep: int = 8,
        filters: Filters = UNFILTERED,
        seed: int = 0,
        first: int = 0,
        batch_size: int = 64,
        canvas: Tensor | None = None,
        truncate: bool = False,
    ) -> list[Result]:
        """`generate` for several captions, which share batches: faster where candidates are few.

        With `truncate` a caption too long is cut, as in training.
        """
        if not 1 <= keep <= candidates:
            raise ValueError(f"keep={keep} of candidates={candidates} cannot be kept; use 1 to {candidates}")
        drawn = generate(
            self.transformer,
            self.tokenize(captions, truncate),
            candidates,
            filters=filters,
            seed=seed,
            first=first,
            batch_size=batch_size,
            canvas=canvas,
        )
        return [self._keep(caption, tokens, keep, first) for caption, tokens in zip(captions, drawn, strict=True)]

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

    @torch.inference_mode()
    def pictures(self, tokens: Tensor, batch_size: int = 64) -> list[Image.Image]:
        """The pictures that image tokens stand for: (b, h, w) int64 -> b of them."""
        device = self.transformer.image_head.weight.device
        decoded = [self.dvae.decode(some.to(device)).float().cpu() for some in tokens.split(batch_size)]
        pixels = rearrange(torch.cat(decoded), "b c h w -> b h w c").mul(255).round().to(torch.uint8)
        return [Image.fromarray(image) for image in pixels.numpy()]

    def _keep(self, caption: str, tokens: Tensor, keep: int, first: int) -> Result:
        if self.clip is None:
            order, scores = list(range(keep)), None
            images = self.pictures(tokens[:keep])
        else:
            candidates = self.pictures(tokens)
            order, scores = rank(candidates, caption, self.clip)
            order, scores = order[:keep], scores[:keep]
            images = [candidates[index] for index in order]
        return Result(caption, images, scores, tokens[order], [first + index for index in order])


def find_parts(folder: str | Path, dvae: str | Path | None = None, clip: str | Path | None = None) -> dict[str, Path]:
    """Where the parts of a DALL-E lie: {"transformer": ..., "dvae": ...} and "clip" where there is one.

    Raises:
        CheckpointError: no transformer or dVAE, or a dVAE that the transformer was not trained on.
    """
    folder = Path(folder)
    transformer = folder / "transformer" if (folder / "transformer").is_dir() else folder
    _, meta = checkpoint.read_config(transformer, "transformer")
    trained_on = meta.get("dvae", {})

    if dvae is not None:
        found = Path(dvae)
    elif (folder / "dvae").is_dir():
        found = folder / "dvae"
    elif "path" in trained_on:
        found = transformer / trained_on["path"]
    else:
        raise CheckpointError(f"{folder} has no dvae/ and names no dVAE; give dvae=<folder>")
    if not found.is_dir():
        raise CheckpointError(
            f"{transformer} was trained on the dVAE {trained_on.get('digest', 'of unknown digest')}, "
            f"which is not at {found}; say where it is with dvae=<folder>"
        )
    checkpoint.read_config(found, "dvae")
    digest = checkpoint.digest(found)
    if digest != trained_on.get("digest", digest):
        raise CheckpointError(
            f"{transformer} was trained on the tokens of dVAE {trained_on['digest']}, "
            f"but {found} is {digest}; give the right one with dvae=<folder>"
        )

    parts = {"transformer": transformer, "dvae": found}
    if clip is not None:
        parts["clip"] = Path(clip)
    elif (folder / "clip").is_dir():
        parts["clip"] = folder / "clip"
    return parts
