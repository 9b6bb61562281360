"""Counts of training tokens by their neighbours, saved beside a transformer: first guesses of parallel decoding.

    p(token)                              frequencies of all tokens
    p(token | left, above)                counts of this context, smoothed with the frequencies
    p(token | left, above, above right)   counts of this context, smoothed with the line before

Each level is smoothed with a Dirichlet prior (MacKay and Peto 1995). Only the most frequent pairs of context and token
are kept, so the file is small and holds no image.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dalle.atomic_files import atomic_write
from dalle.weights_files import CheckpointError

FILE = "token_counts.safetensors"
MAX_ENTRIES = 40_000  # pairs of context and token kept on each level: 1 MB in all
INTEGER = torch.int16  # of the file's tokens and counts, of which larger ones are cut
PRIOR = 2.0  # number of counts that the level before weighs as much as
NAMES = ("frequencies", "contexts_2", "tokens_2", "counts_2", "contexts_3", "tokens_3", "counts_3")


class TokenCounts:
    """Counts of training tokens by their neighbours, and the dVAE whose tokens they are."""

    def __init__(self, tensors: Mapping[str, Tensor], dvae: str | None = None):
        """tensors: those of `NAMES`; pairs of a level are sorted by context. dvae: digest of the dVAE."""
        self.tensors, self.dvae = dict(tensors), dvae
        self.base = tensors["frequencies"] + 0.1
        self.base = self.base / self.base.sum()

    @property
    def vocabulary(self) -> int:
        return len(self.base)

    @classmethod
    def of_images(cls, images: Tensor, grid: int, vocabulary: int, dvae: str | None = None) -> "TokenCounts":
        """Count the tokens of (n, grid * grid) images.

        Raises:
            ValueError: more than 32,768 image tokens.
        """
        if vocabulary > torch.iinfo(INTEGER).max + 1:
            raise ValueError(f"counts of {vocabulary} image tokens are not supported; at most 32,768 are")
        positions = torch.arange(grid * grid).expand(len(images), -1)
        left, above, above_right = neighbours(images, positions, grid)
        tensors = {"frequencies": torch.bincount(images.flatten(), minlength=vocabulary).float()}
        for level, key in enumerate((_key(vocabulary, left, above), _key(vocabulary, left, above, above_right)), 2):
            pairs, counts = (key * vocabulary + images).flatten().unique(return_counts=True)
            kept = counts.argsort(descending=True, stable=True)[:MAX_ENTRIES].sort().values
            tensors[f"contexts_{level}"] = pairs[kept] // vocabulary
            tensors[f"tokens_{level}"] = (pairs[kept] % vocabulary).to(INTEGER)
            tensors[f"counts_{level}"] = counts[kept].clamp(max=torch.iinfo(INTEGER).max).to(INTEGER)
        return cls(tensors, dvae)

    def log_probabilities(self, left: Tensor, above: Tensor, above_right: Tensor) -> Tensor:
        """Estimate the log-probabilities of the tokens of b cells from their neighbours, (b,) each: (b, v)."""
        probabilities = self.base.repeat(len(left), 1)
        for level, others in ((2, ()), (3, (above_right,))):
            key = _key(self.vocabulary, left, above, *others).cpu()
            contexts, tokens, counts = (self.tensors[f"{name}_{level}"] for name in ("contexts", "tokens", "counts"))
            first = torch.searchsorted(contexts, key).tolist()
            last = torch.searchsorted(contexts, key, right=True).tolist()
            for row, (start, end) in enumerate(zip(first, last, strict=True)):
                if start < end:
                    probabilities[row] *= PRIOR
                    probabilities[row, tokens[start:end].long()] += counts[start:end]
                    probabilities[row] /= PRIOR + counts[start:end].sum()
        return probabilities.log_().to(left.device)

    def save(self, folder: Path) -> None:
        """Write `FILE` to a checkpoint folder. Raises CheckpointError if it cannot be written."""
        try:
            with atomic_write(folder / FILE) as path:
                save_file(self.tensors, path, {"dvae": json.dumps(self.dvae)})
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"could not save {folder / FILE}: {error}") from error


def neighbours(images: Tensor, positions: Tensor, grid: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the left, above and above-right token of positions, -1 where there is none: (b, I), (b, n) -> (b, n) each.

    The left token is the one before in raster order, also at a row's beginning.
    """
    found = []
    for offset in (1, grid, grid - 1):
        tokens = images.gather(1, (positions - offset).clamp(min=0))
        missing = positions < offset
        if offset == grid - 1:  # beside the last column there is none
            missing |= (positions % grid == grid - 1) | (positions < grid)
        found.append(torch.where(missing, -1, tokens))
    left, above, above_right = found
    return left, above, above_right


def load_token_counts(folder: Path, vocabulary: int, dvae: str | None) -> TokenCounts | None:
    """Load the counts beside a transformer; None if there are none.

    vocabulary: number of image tokens. dvae: digest of the dVAE that the transformer was trained with, if known.

    Raises:
        CheckpointError: a damaged file, or counts of another dVAE's tokens.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in NAMES}
            counted = json.loads((file.metadata() or {}).get("dvae", "null"))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; delete it, which changes no image") from error
    _check(path, tensors, vocabulary)
    if None not in (counted, dvae) and counted != dvae:
        raise CheckpointError(
            f"{path} has counts of the tokens of dVAE {counted}, but the transformer was trained with {dvae}: delete "
            "it, which changes no image, or write it anew with prepare.py token_counts="
        )
    return TokenCounts(tensors, counted)


def _check(path: Path, tensors: Mapping[str, Any], vocabulary: int) -> None:
    sizes = [{len(tensors[f"{name}_{level}"]) for name in ("contexts", "tokens", "counts")} for level in (2, 3)]
    if any(each.ndim != 1 for each in tensors.values()) or any(len(each) != 1 for each in sizes):
        raise CheckpointError(f"{path} is damaged: its tensors have other shapes; delete it, which changes no image")
    if len(tensors["frequencies"]) != vocabulary or any(
        len(tensors[f"tokens_{level}"]) and not 0 <= int(tensors[f"tokens_{level}"].max()) < vocabulary
        for level in (2, 3)
    ):
        raise CheckpointError(
            f"{path} has counts of {len(tensors['frequencies'])} image tokens, but the transformer has {vocabulary}: "
            "delete it, which changes no image"
        )


def _key(vocabulary: int, *tokens: Tensor) -> Tensor:
    """Join the tokens of a context, -1 for none, into one number."""
    key = torch.zeros_like(tokens[0])
    for each in tokens:
        key = key * (vocabulary + 1) + each + 1
    return key
