"""The loader: what a batch holds depends on the seed and the step alone."""

import logging
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from dalle.data.loader import Batch, batches, ordered
from dalle.data.source import Record, UnreadableRecord
from dalle.data.transforms import dvae_augmentation, inference_crop

SIZE = 8


class Numbered:
    """Record i is a picture of random pixels with two captions; those in `broken` cannot be read."""

    image_size = SIZE

    def __init__(self, length: int, broken: tuple[int, ...] = ()):
        self.length = length
        self.broken = broken

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        if index in self.broken:
            raise UnreadableRecord(f"record {index}", "made so")
        pixels = np.random.default_rng(index).integers(0, 256, (SIZE + 4, SIZE + 6, 3), dtype=np.uint8)
        return Record(Image.fromarray(pixels), (f"{index} in words", f"number {index}"), f"record {index}")


def taken(count: int, source: Numbered, **options) -> list[Batch]:
    settings = {"batch_size": 3, "seed": 7} | options
    return list(islice(batches(source, dvae_augmentation, **settings), count))


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.images, b.images)
        assert (a.captions, a.keys, a.unreadable) == (b.captions, b.keys, b.unreadable)


def test_batch_holds_pictures_captions_and_keys_that_belong_together():
    (batch,) = taken(1, Numbered(10), batch_size=5)
    assert batch.images.shape == (5, 3, SIZE, SIZE)
    assert batch.images.dtype == torch.uint8 and batch.images.is_contiguous()
    for caption, key in zip(batch.captions, batch.keys, strict=True):
        assert caption in Numbered(10)[int(key.split()[1])].captions


def test_starting_at_a_step_continues_the_same_stream():
    source = Numbered(10)
    assert_same(taken(9, source)[5:], taken(4, source, start_step=5))


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_make_the_batch_of_one_rank(world):
    source = Numbered(11, broken=(4,))
    alone = taken(8, source, batch_size=2 * world)
    ranks = [taken(8, source, batch_size=2, rank=rank, world=world) for rank in range(world)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
        assert whole.captions == [caption for part in parts for caption in part.captions]
        assert whole.keys == [key for part in parts for key in part.keys]


def test_worker_processes_change_nothing_but_who_prepares():
    source = Numbered(10, broken=(2,))
    state = torch.get_rng_state()
    in_workers = taken(6, source, start_step=2, workers=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(in_workers, taken(6, source, start_step=2))


def test_every_record_comes_once_per_epoch_in_an_order_of_its_own():
    keys = [key for batch in taken(8, Numbered(12)) for key in batch.keys]
    first, second = keys[:12], keys[12:]
    assert set(first) == set(second) == {f"record {i}" for i in range(12)}
    assert first != second


def test_epochs_ends_the_stream_with_a_full_batch():
    keys = [key for batch in taken(99, Numbered(10), epochs=2) for key in batch.keys]
    assert len(keys) == 21
    assert set(Counter(keys[:20]).values()) == {2}
    assert taken(99, Numbered(10), epochs=2, start_step=7) == []


def test_captions_and_augmentation_change_from_epoch_to_epoch():
    seen = taken(40, Numbered(1), batch_size=1)
    assert {batch.captions[0] for batch in seen} == set(Numbered(1)[0].captions)
    assert len({batch.images.numpy().tobytes() for batch in seen}) > 10


def test_another_seed_gives_another_order():
    orders = [[batch.keys for batch in taken(4, Numbered(12), seed=seed)] for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_unreadable_records_are_replaced_listed_and_named_once(caplog):
    with caplog.at_level(logging.WARNING):
        got = taken(12, Numbered(9, broken=(3, 5)))
    keys = [key for batch in got for key in batch.keys]
    assert len(keys) == 36 and not {"record 3", "record 5"} & set(keys)
    assert {key for batch in got for key in batch.unreadable} == {"record 3", "record 5"}
    assert sum("record 3: made so" in message for message in caplog.messages) == 1
    assert sum("record 5: made so" in message for message in caplog.messages) == 1
    assert "(2 so far)" in caplog.messages[-1]


def test_unreadable_record_gives_way_to_the_next_of_the_stream():
    whole = [key for batch in taken(4, Numbered(12)) for key in batch.keys]
    holed = [key for batch in taken(4, Numbered(12, broken=(5,))) for key in batch.keys]
    at = whole.index("record 5")
    after = whole[at + 1] if at < 11 else taken(5, Numbered(12))[4].keys[0]
    assert holed == [*whole[:at], after, *whole[at + 1 :]]


def test_nothing_readable_is_an_error_that_names_a_record():
    with pytest.raises(ValueError, match="none of the 3 records can be read; for instance record"):
        taken(1, Numbered(3, broken=(0, 1, 2)))
    with pytest.raises(ValueError, match="none of the 3 records can be read; for instance record 0: made so"):
        list(ordered(Numbered(3, broken=(0, 1, 2)), inference_crop, 2))


def test_ordered_visits_every_readable_record_once_from_first_to_last():
    got = list(ordered(Numbered(8, broken=(1, 7)), inference_crop, 4))
    assert [key for batch in got for key in batch.keys] == [f"record {i}" for i in (0, 2, 3, 4, 5, 6)]
    assert [len(batch.keys) for batch in got] == [4, 2]
    assert got[0].captions[0] == "0 in words"
    assert [list(batch.unreadable) for batch in got] == [["record 1"], ["record 7"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"rank": 2, "world": 2}, "rank 2 is not one of 2 ranks"),
        ({"seed": -1}, "seed -1"),
        ({"start_step": -1}, "start_step -1"),
    ],
)
def test_numbers_that_cannot_work_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        taken(1, Numbered(4), **options)


def test_empty_source_is_refused_at_once():
    with pytest.raises(ValueError, match="empty"):
        batches(Numbered(0), inference_crop, batch_size=1, seed=0)
    with pytest.raises(ValueError, match="empty"):
        ordered(Numbered(0), inference_crop, 1)
