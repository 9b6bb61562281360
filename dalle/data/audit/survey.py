"""Survey of a data set before training: statistics and problems of its images and captions."""

from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dalle.data import open_splits
from dalle.data.audit.near_duplicates import find_near_duplicates
from dalle.data.audit.scan import Scan, scan
from dalle.data.files import FileSource
from dalle.data.filters import exceeds_aspect_ratio
from dalle.tokenizer import CaptionTokenizer

SPLITS = ("train", "val")
ASPECT_RATIOS = {  # upper bounds of width / height; the paper's filter leaves out the first and the last
    "taller than 1:2": 0.5,
    "1:2 to 3:4": 0.75,
    "3:4 to 4:3": 4 / 3,
    "4:3 to 2:1": 2.0,
    "wider than 2:1": np.inf,
}


@dataclass(frozen=True)
class Captions:
    """Token counts of all m captions of the records scanned in one split."""

    tokens: np.ndarray = field(repr=False)  # (m) int32, token count of each caption
    positions: np.ndarray = field(repr=False)  # (m) int64, position of each caption's record among those scanned

    @classmethod
    def of(cls, split_scan: Scan, tokenizer: CaptionTokenizer) -> "Captions":
        """Count the tokens of all captions of the scanned records."""
        tokens, positions = array("i"), array("q")
        for position, index in enumerate(split_scan.indices):
            for caption in split_scan.source.captions(index):
                tokens.append(len(tokenizer.encode(caption)))
                positions.append(position)
        return cls(np.array(tokens, np.int32), np.array(positions, np.int64))


@dataclass(frozen=True)
class Survey:
    """Results of a survey; `statistics` returns them as JSON data."""

    data: Any  # the data set's config
    scans: list[Scan]  # one per split
    captions: list[Captions]  # one per split
    tokenizer: CaptionTokenizer
    vocabulary: int  # requested vocabulary size of the BPE
    text_positions: int  # text positions of a model: a start token and the caption's tokens
    near_duplicates: list[list[tuple[Scan, int]]] = field(repr=False)  # groups of (scan, position), largest first

    @classmethod
    def of(
        cls, data: Any, vocabulary: int, text_positions: int, limit: int | None = None, workers: int = 0
    ) -> "Survey":
        """Scan both splits of a data set, or `limit` records of each.

        The BPE is trained on the captions of the training split. Memory use is about a hundred bytes per record, plus
        the keys of unreadable records. Raises ValueError if the source does, and if there is nothing to scan.
        """
        scans = [scan(source, split, limit, workers) for split, source in open_splits(data, SPLITS).items()]
        tokenizer = CaptionTokenizer.train(_texts(scans[0]), vocabulary)
        groups = find_near_duplicates(np.concatenate([split_scan.hashes for split_scan in scans]))
        ends = np.cumsum([len(split_scan.indices) for split_scan in scans])
        near_duplicates = [[_scan_and_position(scans, ends, int(position)) for position in group] for group in groups]
        captions = [Captions.of(split_scan, tokenizer) for split_scan in scans]
        return cls(data, scans, captions, tokenizer, vocabulary, text_positions, near_duplicates)

    def statistics(self) -> dict[str, Any]:
        """Return the results as JSON data, with the keys of all records that have a problem."""
        first = self.scans[0].source
        return {
            "data": asdict(self.data),
            "dropped": dict(first.dropped),
            "warnings": dict(first.warnings) if isinstance(first, FileSource) else {},
            "splits": {split_scan.split: self._split_statistics(split_scan) for split_scan in self.scans},
            "images": self._image_statistics(),
            "captions": self._caption_statistics(),
            "tokenizer": {"requested": self.vocabulary, "vocabulary": self.tokenizer.vocabulary},
            "near_duplicates": self._duplicate_statistics(),
        }

    def _split_statistics(self, split_scan: Scan) -> dict[str, Any]:
        return {
            "records": len(split_scan.source),
            "scanned": len(split_scan.indices),
            "digest": split_scan.source.digest(),
            "unreadable": split_scan.unreadable,
        }

    def _image_statistics(self) -> dict[str, Any]:
        sizes = np.concatenate([split_scan.sizes for split_scan in self.scans])
        sizes = sizes[sizes[:, 0] > 0]
        widths, heights = sizes.T
        ratio_class = np.searchsorted([*ASPECT_RATIOS.values()], widths / heights.clip(1))
        is_outside = np.array([exceeds_aspect_ratio((width, height), 2) for width, height in sizes.tolist()], bool)
        # 1:2 and 2:1 themselves are inside
        ratio_class = np.where(is_outside, ratio_class, ratio_class.clip(1, len(ASPECT_RATIOS) - 2))
        return {
            "readable": len(sizes),
            "image_size": self.data.image_size,
            "widths": quantiles(widths),
            "heights": quantiles(heights),
            "smaller_than_image_size": int((sizes.min(axis=1) < self.data.image_size).sum()) if len(sizes) else 0,
            "aspect_ratios": {name: int((ratio_class == number).sum()) for number, name in enumerate(ASPECT_RATIOS)},
        }

    def _caption_statistics(self) -> dict[str, Any]:
        too_long, empty = {}, []
        for split_scan, captions in zip(self.scans, self.captions, strict=True):
            longest = np.zeros(len(split_scan.indices), np.int64)
            np.maximum.at(longest, captions.positions, captions.tokens)
            too_long |= {
                split_scan.key(position): int(longest[position])
                for position in np.flatnonzero(longest >= self.text_positions).tolist()
            }
            empty += [split_scan.key(position) for position in np.flatnonzero(longest == 0).tolist()]
        tokens = np.concatenate([split_captions.tokens for split_captions in self.captions])
        records = sum(len(split_scan.indices) for split_scan in self.scans)
        return {
            "captions": len(tokens),
            "per_record": round(len(tokens) / max(1, records), 2),
            "tokens": quantiles(tokens),
            "text_positions": self.text_positions,
            "too_long": too_long,
            "empty": empty,
        }

    def _duplicate_statistics(self) -> dict[str, Any]:
        groups = [{"train": [], "val": []} for _ in self.near_duplicates]
        for keys_by_split, group in zip(groups, self.near_duplicates, strict=True):
            for split_scan, position in group:
                keys_by_split[split_scan.split].append(split_scan.key(position))
        return {
            "images": sum(map(len, self.near_duplicates)),
            "val_with_duplicate_in_train": sum(len(group["val"]) for group in groups if group["train"]),
            "groups": groups,
        }


def quantiles(values: np.ndarray) -> dict[str, int]:
    """Return five quantiles of an array of integers, by name; an empty dict for an empty array."""
    shares = {"least": 0, "5%": 0.05, "median": 0.5, "95%": 0.95, "most": 1}
    if len(values) == 0:
        return {}
    quantile_values = np.quantile(values, list(shares.values()), method="nearest")
    return dict(zip(shares, quantile_values.astype(int).tolist(), strict=True))


def _texts(split_scan: Scan) -> Iterable[str]:
    return (caption for index in split_scan.indices for caption in split_scan.source.captions(index))


def _scan_and_position(scans: list[Scan], ends: np.ndarray, position: int) -> tuple[Scan, int]:
    """Convert a position in the concatenated splits to (scan of the split, position in it)."""
    number = int(np.searchsorted(ends, position, side="right"))
    return scans[number], position - int(ends[number - 1] if number else 0)
