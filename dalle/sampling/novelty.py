"""Novelty of samples: the nearest training images, by perceptual hash and, if there is a CLIP, by its features.

The hash finds copies of image files. The share of equal tokens finds images that the model has memorised: the dVAE
blurs them, so that their hashes differ. Colours tell them from images that have parts in common, as in simple worlds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from dalle import checkpoint
from dalle.atomic_files import atomic_write
from dalle.data import open_source
from dalle.data.audit.perceptual_hash import (
    NEAR_BITS,
    NEAR_LEVELS,
    colour_distance,
    hamming_distance,
    perceptual_hash,
    perceptual_hashes,
)
from dalle.data.audit.provenance import Provenance
from dalle.data.skip_counter import printable
from dalle.data.source import Source, UnreadableRecord
from dalle.data.transforms import inference_crop
from dalle.image_conversion import to_tensor
from dalle.image_grid import Cell, GridRow, image_grid
from dalle.models.clip.model import CLIP
from dalle.models.dvae.model import DiscreteVAE
from dalle.sampling.clip_features import clip_features, encode_squares
from dalle.sampling.rerank import Scorer
from dalle.sampling.results import Result
from dalle.sampling.token_overlap import COPY_LEVELS, TokenComparison, cell_levels, compare_tokens

GRID_FILE = "novelty.png"
TILE = 152  # pixels of an image on the grid
MAX_SAMPLES_ON_GRID = 96  # samples shown with their nearest training images
CANDIDATES = 8  # nearest training images of each search whose tokens and colours are compared
SIDE, CELL = 64, 4  # pixels per side of images whose colours are compared, and of their cells
SAME_LEVELS = 8  # of 255: mean colours of the same image, saved twice, differ by at most this


@dataclass(frozen=True)
class Neighbour:
    """A training image and its distances from a query image."""

    index: int
    key: str
    bits: int  # differing bits of the 64-bit hashes
    levels: int  # largest difference of the mean colours, of 255
    feature_distance: float | None  # 1 - cosine of CLIP's features, in [0, 2]; None: no CLIP
    overlap: float | None = None  # share of equal tokens, in [0, 1]; None: not compared
    cell_levels: float | None = None  # largest difference of a cell's mean colours, of 255; None: too far to compare

    @property
    def is_near_duplicate(self) -> bool:
        if self.overlap is not None:
            return self.is_same or TokenComparison(self.overlap, self.cell_levels).is_copy
        return self.is_near_by_hash and (self.cell_levels is None or self.cell_levels <= COPY_LEVELS)

    @property
    def is_near_by_hash(self) -> bool:
        return self.bits <= NEAR_BITS and self.levels <= NEAR_LEVELS

    @property
    def is_same(self) -> bool:
        return self.bits == 0 and self.levels <= SAME_LEVELS

    def distances(self) -> str:
        """Format the distances for a label, such as "3 bits, 12 levels, CLIP 0.081".

        The difference of colours is named if an image is for this reason no near duplicate.
        """
        features = "" if self.feature_distance is None else f", CLIP {self.feature_distance:.3f}"
        overlap = "" if self.overlap is None else f", {self.overlap:.0%} of tokens"
        why_not = self.cell_levels is not None and not self.is_near_duplicate
        colours = f", colours {self.cell_levels:.0f} levels apart" if why_not else ""
        return f"{self.bits} bits, {self.levels} levels{features}{overlap}{colours}"

    def metadata(self) -> dict[str, Any]:
        """Return the fields by name, as JSON values, and `near_duplicate`: True for a near duplicate."""
        return {**asdict(self), "near_duplicate": self.is_near_duplicate}


class TrainingImages:
    """Training images of a source, indexed by perceptual hash and CLIP's features for nearest-neighbour search."""

    def __init__(
        self, source: Source, hashes: np.ndarray, clip: CLIP | None = None, features: np.ndarray | None = None
    ):
        """Index the n images of `source`.

        hashes: (n) HASH_DTYPE, the perceptual hashes.
        features: (n, embedding) unit vectors of `clip`, 0 for unreadable images.
        """
        self.source, self.hashes, self.clip, self.features = source, hashes, clip, features
        self.keys = source.keys()

    @classmethod
    def open(
        cls, data: Any, clip: CLIP | None = None, clip_folder: Path | None = None, workers: int = 0
    ) -> "TrainingImages":
        """Index a data set's training split. Hashes and features are cached on disk.

        `clip_folder` is the checkpoint of `clip`. Raises ValueError if the data cannot be opened.
        """
        source = open_source(data, "train")
        hashes = perceptual_hashes(source, workers)
        if clip is None or clip_folder is None:
            return cls(source, hashes)
        return cls(source, hashes, clip, clip_features(source, clip, checkpoint.digest(clip_folder), workers))

    def nearest(self, image: Image.Image, count: int = 1, by_clip: bool = True) -> list[Neighbour]:
        """Return the `count` nearest training images, nearest first; fewer if there are fewer.

        Near duplicates come first: near by perceptual hash, and with like colours in each cell. The others are ordered
        by CLIP's features, or without a CLIP or with `by_clip` false by perceptual hash. Raises ValueError if no
        training image can be read.
        """
        own = perceptual_hash(image)
        bits = hamming_distance(self.hashes["hash"], own["hash"])
        levels = colour_distance(self.hashes["colours"], own["colours"])
        is_far = ~((bits <= NEAR_BITS) & (levels <= NEAR_LEVELS))
        hash_distances = bits / NEAR_BITS + levels / NEAR_LEVELS  # in units of the limits for near duplicates
        feature_distances = None if self.features is None else self._feature_distances(image)
        # lexsort: the last key counts most
        if feature_distances is None or not by_clip:
            order = np.lexsort((hash_distances, is_far))
        else:
            order = np.lexsort((hash_distances, np.where(is_far, feature_distances, 0), is_far))
        order = order[self.hashes["readable"][order]][: max(count, CANDIDATES)].tolist()
        if not order:
            raise ValueError("none of the training images can be read")
        found = [
            Neighbour(
                index=index,
                key=self.keys[index],
                bits=int(bits[index]),
                levels=int(levels[index]),
                feature_distance=None if feature_distances is None else float(feature_distances[index]),
            )
            for index in order
        ]
        for position, neighbour in enumerate(found):
            if neighbour.is_near_by_hash and (other := self.image(neighbour)) is not None:
                found[position] = replace(neighbour, cell_levels=compare_colours(image, other))
        return sorted(found, key=lambda neighbour: not neighbour.is_near_duplicate)[:count]

    def image(self, neighbour: Neighbour) -> Image.Image | None:
        """Read the neighbour's image; None if it can no longer be read."""
        try:
            return self.source[neighbour.index].image
        except UnreadableRecord:
            return None

    def _feature_distances(self, image: Image.Image) -> np.ndarray:
        assert self.clip is not None and self.features is not None
        square = inference_crop(image, self.source.image_size)  # the crop that the training images were encoded with
        own = encode_squares(self.clip, [square])[0]
        starts = range(0, len(self.features), 1 << 16)  # features on disk may not fit into memory at once
        cosines = [self.features[start : start + (1 << 16)].astype(np.float32) @ own for start in starts]
        return (1 - np.concatenate(cosines)).clip(0)  # rounding may give equal vectors a cosine above 1


class Novelty:
    """Nearest training image of each sample, by perceptual hash and, if there is a CLIP, by its features too.

    Of the nearest of each search, it is a near duplicate, or else the one with the largest share of equal tokens.
    Collects entries for samples.json and an image grid.
    """

    def __init__(self, training: TrainingImages, dvae: DiscreteVAE):
        self.training, self.dvae = training, dvae
        self.searches = {"nearest": False} | ({} if training.features is None else {"nearest_by_clip": True})
        self.cells: list[Cell] = []
        self.num_samples, self.num_near_duplicates = 0, 0

    @classmethod
    def of_checkpoint(cls, components: Mapping[str, Path], dvae: DiscreteVAE, clip: Scorer | None) -> "Novelty":
        """Compare with the training images of the transformer in `components`, as `find_components` returns them.

        dvae, clip: those in `components`; any other scorer than a CLIP is ignored.

        Raises:
            ValueError: the training images are missing.
        """
        data = Provenance.read(components["transformer"]).data()
        clip = clip if isinstance(clip, CLIP) else None
        return cls(TrainingImages.open(data, clip, components.get("clip")), dvae)

    def compare(self, result: Result) -> list[Mapping[str, Any]]:
        """Find the nearest training images of each image of a result. Returns their metadata for samples.json."""
        metadata = []
        for image, tokens in zip(result.images, result.tokens, strict=True):
            nearest = {name: self.nearest(image, tokens, by_clip) for name, by_clip in self.searches.items()}
            if self.num_samples < MAX_SAMPLES_ON_GRID:
                self.cells += side_by_side(self.training, image, result.caption, list(nearest.values()))
            self.num_samples += 1
            self.num_near_duplicates += any(neighbour.is_near_duplicate for neighbour in nearest.values())
            metadata.append({name: neighbour.metadata() for name, neighbour in nearest.items()})
        return metadata

    def nearest(self, image: Image.Image, tokens: Tensor, by_clip: bool) -> Neighbour:
        """Return the training image with the most tokens of a sample, (h, w), among the nearest of one search."""
        found = self.training.nearest(image, CANDIDATES, by_clip)
        size = self.training.source.image_size
        if tokens.shape != (size // self.dvae.downsample, size // self.dvae.downsample):
            return found[0]  # an outpainted image is larger than the training images
        images = [(neighbour, self.training.image(neighbour)) for neighbour in found]
        readable = [
            (neighbour, Image.fromarray(inference_crop(shown, size)))
            for neighbour, shown in images
            if shown is not None
        ]
        if not readable:
            return found[0]
        pixels = to_tensor([shown for _, shown in readable])  # (n, 3, H, W)
        own = to_tensor([Image.fromarray(inference_crop(image, size))])[0]
        pixels = to_tensor([shown for _, shown in readable])  # (n, 3, H, W)
        results = compare_tokens(self.dvae, own, tokens.cpu(), pixels)
        compared = [
            replace(neighbour, **vars(result)) for (neighbour, _), result in zip(readable, results, strict=True)
        ]
        return max(
            compared, key=lambda neighbour: (neighbour.is_same, neighbour.is_near_duplicate, neighbour.overlap or 0.0)
        )

    def save(self, folder: Path) -> Path:
        """Write the image grid and return its path. Needs at least one call of `compare`."""
        shown_first = f"the first {MAX_SAMPLES_ON_GRID:,} of " if self.num_samples > MAX_SAMPLES_ON_GRID else ""
        both = "s nearest to it, by perceptual hash and by CLIP" if len(self.searches) > 1 else " nearest to it"
        title = f"{shown_first}{self.num_samples:,} samples, each left of the training image{both}; {self.sentence()}"
        with atomic_write(folder / GRID_FILE) as temporary:
            image_grid([GridRow(self.cells)], 4 * (1 + len(self.searches)), TILE, title).save(temporary, format="PNG")
        return folder / GRID_FILE

    def sentence(self) -> str:
        """Return a sentence with the number of near duplicates among the samples compared so far."""
        return f"{self.num_near_duplicates:,} of {self.num_samples:,} are near duplicates of training images"


def compare_colours(image: Image.Image, other: Image.Image) -> float:
    """Return the largest difference of a cell's mean colours, of 255, of the central squares of two images."""
    one, another = to_tensor([Image.fromarray(inference_crop(picture, SIDE)) for picture in (image, other)])
    return cell_levels(one, another, CELL)


def side_by_side(
    training: TrainingImages, image: Image.Image, label: str, neighbours: Sequence[Neighbour]
) -> list[Cell]:
    """Return cells of an image and its neighbours, each with its first caption and its distances."""
    cells = [Cell(image, label, "this image")]
    for neighbour in neighbours:
        caption = training.source.captions(neighbour.index)[0]
        shown = training.image(neighbour) or Image.new("RGB", image.size, "white")
        cells.append(Cell(shown, printable(f"{caption} ({neighbour.key})"), neighbour.distances()))
    return cells


def describe_nearest(nearest: Neighbour, training_images: int) -> str:
    """Return a sentence that says if an image is among `training_images` images, given the nearest of them."""
    key = printable(nearest.key)
    if nearest.is_same:
        return f"This image is in the training set: {key}."
    if nearest.is_near_duplicate:
        return f"A near duplicate of this image is in the training set: {key} ({nearest.distances()})."
    return (
        f"Neither this image nor a near duplicate of it is among the {training_images:,} training images; "
        f"the nearest is {key} ({nearest.distances()}; a near duplicate has at most {NEAR_BITS} bits, "
        f"{NEAR_LEVELS} levels, and colours {COPY_LEVELS} levels apart). Mirrored or strongly cropped copies are not "
        "found."
    )
