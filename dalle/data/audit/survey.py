"""A data set looked over before anything is spent: its pictures, its captions, and what is wrong with either."""

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
SHAPES = {  # of pictures, by the upper bound of width / height; the paper leaves out the first and the last
    "taller than 1:2": 0.5,
    "1:2 to 3:4": 0.75,
    "3:4 to 4:3": 4 / 3,
    "4:3 to 2:1": 2.0,
    "wider than 2:1": np.inf,
}


@dataclass(frozen=True)
class Captions:
    """The captions of the records that were looked at, in tokens."""

    tokens: np.ndarray = field(repr=False)  # (m) int32, of each caption
    places: np.ndarray = field(repr=False)  # (m) int64, whose caption it is

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
    """All that was found; `facts` tells it in words and numbers."""

    data: Any  # the data set's config
    looks: list[Look]  # of each split
    captions: list[Captions]  # of each split
    tokenizer: CaptionTokenizer
    vocabulary: int  # that was asked for
    text_positions: int  # text slots of a model; one of them starts the text, and the others hold a caption's tokens
    near_copies: list[list[tuple[Look, int]]] = field(repr=False)  # groups of places, the largest group first

    @classmethod
    def of(
        cls, data: Any, vocabulary: int, text_positions: int, limit: int | None = None, workers: int = 0
    ) -> "Survey":
        """Look at both splits of a data set, or at `limit` records of each.

        The BPE is learned on the captions of the training split. Memory is that of arrays, about a hundred bytes a
        record, and of the names of what cannot be read. Raises ValueError where the source does, and where there is
        nothing to look at.
        """
        looks = [look_at(open_source(data, split), split, limit, workers) for split in SPLITS]
        tokenizer = CaptionTokenizer.train(_texts(looks[0]), vocabulary)
        groups = groups_of_near_copies(np.concatenate([look.prints for look in looks]))
        ends = np.cumsum([len(look.rows) for look in looks])
        near_copies = [[_at(looks, ends, int(place)) for place in group] for group in groups]
        captions = [Captions.of(look, tokenizer) for look in looks]
        return cls(data, looks, captions, tokenizer, vocabulary, text_positions, near_copies)

    def facts(self) -> dict[str, Any]:
        """What JSON can hold of it; every record that something is wrong with is named."""
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
    """Five numbers that tell how integers are spread; none of none."""
    shares = {"least": 0, "5%": 0.05, "median": 0.5, "95%": 0.95, "most": 1}
    if len(values) == 0:
        return {}
    found = np.quantile(values, list(shares.values()), method="nearest")
    return dict(zip(shares, found.astype(int).tolist(), strict=True))


def _texts(look: Look) -> Iterable[str]:
    return (caption for row in look.rows for caption in look.source.captions(row))


def _at(looks: list[Look], ends: np.ndarray, place: int) -> tuple[Look, int]:
    """Where a place in all splits in a row lies."""
    number = int(np.searchsorted(ends, place, side="right"))
    return looks[number], place - int(ends[number - 1] if number else 0)
