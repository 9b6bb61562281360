"""Checks of a data set before training: splits with images, equal on all ranks, and enough for them."""

from collections.abc import Mapping
from typing import Any

from dalle import distributed
from dalle.data import open_source
from dalle.data.index import digest_of
from dalle.data.source import Source


def open_held_out(data: Any, split: str) -> Source:
    """Open a held-out split. Raises ValueError for an unknown one, and for one without images, before training."""
    source = open_source(data, split)
    check_held_out(data, split, source)
    return source


def check_held_out(data: Any, split: str, source: Source) -> None:
    """Raise ValueError if the held-out split `split` of `data`, opened as `source`, has no images."""
    if len(source) == 0:
        raise ValueError(f"data={data.name}: the split {split} has no images to validate on; change the data settings")


def check_same_records(sources: Mapping[str, Source]) -> None:
    """Raise ValueError if the sources, by split, have other keys than on rank 0. All ranks must call it.

    Ranks draw their batches from one permutation of the records, and pair captions with cached tokens by position.
    """
    fingerprints = {}
    for split, source in sources.items():
        keys = source.keys()
        fingerprints[split] = len(source), digest_of(keys.blob, keys.offsets)
    first, *others = distributed.all_gather_object(fingerprints)
    for rank, other in enumerate(others, start=1):
        for split, (records, digest) in other.items():
            if (records, digest) != first[split]:
                raise ValueError(
                    f"the data differ between ranks: the split {split} has {first[split][0]:,} records on rank 0 and "
                    f"{records:,} on rank {rank}, with other keys; give all ranks the same files in the same places"
                )


def check_enough_records(train: Source, world_size: int) -> None:
    """Raise ValueError if several ranks have fewer training records than ranks: they would train on repeated images."""
    if len(train) < world_size > 1:
        raise ValueError(
            f"the split train has {len(train):,} records for {world_size} ranks, which would repeat images within an "
            "update: start at most as many ranks as there are records (torchrun --nproc-per-node), or add images"
        )
