"""Survey of a data set before training: statistics and problems of its images and captions."""

from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dalle.data import open_source
from dalle.data.audit.look import Look, look_at
from dalle.data.audit.near_copies import groups_of_near_copies
from dalle.data.files import FileSource
from dalle.tokenizer import CaptionTokenizer

SPLITS = ("train", "val")
SHAPES = {  # upper bounds of width / height; the paper's filter leaves out the first and the last
    "taller than 1:2": 0.5,
    "1:2 to 3:4": 0.75,
    "3:4 to 4:3": 4 / 3,
    "4:3 to 2:1": 2.0,
    "wider than 2:1": np.inf,
}


@dataclass(frozen=True)
class Captions:
    """Token counts of the captions of the scanned records."""

    tokens: np.ndarray = field(repr=False)  # (m) int32, token count of each caption
    places: np.ndarray = field(repr=False)  # (m) int64, position of each caption's record among those scanned

    @classmethod
    def of(cls, look: Look, tokenizer: CaptionTokenizer) -> "Captions":
        tokens, places = array("i"), array("q")
        for place, row in enumerate(look.rows):
            for caption in look.source.captions(row):
                tokens.append(len(tokenizer.encode(caption)))
                places.append(place)
        return cls(np.array(tokens, np.int32), np.array(places, np.int64))


@dataclass(frozen=True)
class Survey:
    """Results of a survey; `facts` returns them as JSON data."""

    data: Any  # the data set's config
    looks: list[Look]  # one per split
    captions: list[Captions]  # one per split
    tokenizer: CaptionTokenizer
    vocabulary: int  # requested vocabulary size of the BPE
    text_positions: int  # text positions of a model: a start token and the caption's tokens
    near_copies: list[list[tuple[Look, int]]] = field(repr=False)  # groups of (scan, position), largest first

    @classmethod
    def of(
        cls, data: Any, vocabulary: int, text_positions: int, limit: int | None = None, workers: int = 0
    ) -> "Survey":
        """Scan both splits of a data set, or `limit` records of each.

        The BPE is trained on the captions of the training split. Memory use is about a hundred bytes per record, plus
        the keys of unreadable records. Raises ValueError if the source does, and if there is nothing to scan.
        """
        looks = [look_at(open_source(data, split), split, limit, workers) for split in SPLITS]
        tokenizer = CaptionTokenizer.train(_texts(looks[0]), vocabulary)
        groups = groups_of_near_copies(np.concatenate([look.prints for look in looks]))
        ends = np.cumsum([len(look.rows) for look in looks])
        near_copies = [[_at(looks, ends, int(place)) for place in group] for group in groups]
        captions = [Captions.of(look, tokenizer) for look in looks]
        return cls(data, looks, captions, tokenizer, vocabulary, text_positions, near_copies)

    def facts(self) -> dict[str, Any]:
        """Return the results as JSON data, with the keys of all records that have a problem."""
        first = self.looks[0].source
        return {
            "data": asdict(self.data),
            "left_out": dict(first.dropped),
            "passed_over": dict(first.remarks) if isinstance(first, FileSource) else {},
            "splits": {look.split: self._split_facts(look) for look in self.looks},
            "pictures": self._picture_facts(),
            "captions": self._caption_facts(),
            "tokenizer": {"asked_for": self.vocabulary, "vocabulary": self.tokenizer.vocabulary},
            "near_copies": self._near_copy_facts(),
        }

    def _split_facts(self, look: Look) -> dict[str, Any]:
        return {
            "records": len(look.source),
            "looked_at": len(look.rows),
            "digest": look.source.digest(),
            "unreadable": look.unreadable,
        }

    def _picture_facts(self) -> dict[str, Any]:
        sizes = np.concatenate([look.sizes for look in self.looks])
        sizes = sizes[sizes[:, 0] > 0]
        widths, heights = sizes.T
        shape = np.searchsorted([*SHAPES.values()], widths / heights.clip(1))
        return {
            "readable": len(sizes),
            "image_size": self.data.image_size,
            "widths": quantiles(widths),
            "heights": quantiles(heights),
            "smaller_than_image_size": int((sizes.min(axis=1) < self.data.image_size).sum()) if len(sizes) else 0,
            "shapes": {name: int((shape == number).sum()) for number, name in enumerate(SHAPES)},
        }

    def _caption_facts(self) -> dict[str, Any]:
        over_long, empty = {}, []
        for look, captions in zip(self.looks, self.captions, strict=True):
            most = np.zeros(len(look.rows), np.int64)
            np.maximum.at(most, captions.places, captions.tokens)
            over_long |= {
                look.key(place): int(most[place]) for place in np.flatnonzero(most >= self.text_positions).tolist()
            }
            empty += [look.key(place) for place in np.flatnonzero(most == 0).tolist()]
        tokens = np.concatenate([each.tokens for each in self.captions])
        records = sum(len(look.rows) for look in self.looks)
        return {
            "captions": len(tokens),
            "per_record": round(len(tokens) / max(1, records), 2),
            "tokens": quantiles(tokens),
            "text_positions": self.text_positions,
            "over_long": over_long,
            "empty": empty,
        }

    def _near_copy_facts(self) -> dict[str, Any]:
        groups = [{"train": [], "val": []} for _ in self.near_copies]
        for named, group in zip(groups, self.near_copies, strict=True):
            for look, place in group:
                named[look.split].append(look.key(place))
        return {
            "pictures": sum(map(len, self.near_copies)),
            "val_with_copy_in_train": sum(len(group["val"]) for group in groups if group["train"]),
            "groups": groups,
        }


def quantiles(values: np.ndarray) -> dict[str, int]:
    """Return five quantiles of integers; an empty dict for an empty array."""
    shares = {"least": 0, "5%": 0.05, "median": 0.5, "95%": 0.95, "most": 1}
    if len(values) == 0:
        return {}
    found = np.quantile(values, list(shares.values()), method="nearest")
    return dict(zip(shares, found.astype(int).tolist(), strict=True))


def _texts(look: Look) -> Iterable[str]:
    return (caption for row in look.rows for caption in look.source.captions(row))


def _at(looks: list[Look], ends: np.ndarray, place: int) -> tuple[Look, int]:
    """Convert a position in the concatenated splits to (scan of the split, position in it)."""
    number = int(np.searchsorted(ends, place, side="right"))
    return looks[number], place - int(ends[number - 1] if number else 0)
