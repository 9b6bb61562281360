"""Data loader: a batch depends only on the seed and the step."""

import logging
import multiprocessing
import os
import time
from collections import Counter

import pytest
import torch
from numbered_source import SIZE, Numbered, taken

from dalle.data.collate import ImageBatch
from dalle.data.loader import image_batches, ordered_batches
from dalle.data.prefetch import LoadingError
from dalle.data.source import Record
from dalle.data.transforms import inference_crop


def assert_same(one: list[ImageBatch], other: list[ImageBatch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.images, b.images)
        assert (a.captions, a.keys, a.unreadable) == (b.captions, b.keys, b.unreadable)


def test_batch_has_matching_images_captions_and_keys():
    (batch,) = taken(1, Numbered(10), batch_size=5)
    assert batch.images.shape == (5, 3, SIZE, SIZE)
    assert batch.images.dtype == torch.uint8 and batch.images.is_contiguous()
    for caption, key in zip(batch.captions, batch.keys, strict=True):
        assert caption in Numbered(10)[int(key.split()[1])].captions


def test_starting_at_a_micro_batch_continues_the_same_stream():
    source = Numbered(10)
    assert_same(taken(9, source)[5:], taken(4, source, start=5))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_make_the_batch_of_one_rank(world_size):
    source = Numbered(11, broken=(4,))
    alone = taken(8, source, batch_size=2 * world_size)
    ranks = [taken(8, source, batch_size=2, rank=rank, world_size=world_size) for rank in range(world_size)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
        assert whole.captions == [caption for part in parts for caption in part.captions]
        assert whole.keys == [key for part in parts for key in part.keys]


def test_worker_processes_give_the_same_batches():
    source = Numbered(10, broken=(2,))
    state = torch.get_rng_state()
    in_workers = taken(6, source, start=2, workers=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(in_workers, taken(6, source, start=2))


def test_every_record_occurs_once_per_epoch_in_a_new_order():
    keys = [key for batch in taken(8, Numbered(12)) for key in batch.keys]
    first, second = keys[:12], keys[12:]
    assert set(first) == set(second) == {f"record {i}" for i in range(12)}
    assert first != second


def test_the_last_batch_of_an_epoch_is_filled_from_the_next_one():
    keys = [key for batch in taken(7, Numbered(10)) for key in batch.keys]
    assert len(keys) == 21
    assert set(Counter(keys[:10]).values()) == {1} and set(Counter(keys[10:20]).values()) == {1}


def test_captions_and_augmentation_differ_between_epochs():
    seen = taken(40, Numbered(1), batch_size=1)
    assert {batch.captions[0] for batch in seen} == set(Numbered(1)[0].captions)
    assert len({batch.images.numpy().tobytes() for batch in seen}) > 10


def test_another_seed_gives_another_order():
    orders = [[batch.keys for batch in taken(4, Numbered(12), seed=seed)] for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_unreadable_records_are_replaced_and_logged_once(caplog):
    with caplog.at_level(logging.WARNING):
        got = taken(12, Numbered(9, broken=(3, 5)))
    keys = [key for batch in got for key in batch.keys]
    assert len(keys) == 36 and not {"record 3", "record 5"} & set(keys)
    assert {key for batch in got for key in batch.unreadable} == {"record 3", "record 5"}
    assert sum("record 3: made so" in message for message in caplog.messages) == 1
    assert sum("record 5: made so" in message for message in caplog.messages) == 1
    assert "(2 so far)" in caplog.messages[-1]


def test_replacement_of_an_unreadable_record_leaves_all_other_positions_alone():
    whole = [key for batch in taken(4, Numbered(12)) for key in batch.keys]
    holed = [key for batch in taken(4, Numbered(12, broken=(5,))) for key in batch.keys]
    at = whole.index("record 5")
    assert holed == [*whole[:at], whole[(at + 7) % 12], *whole[at + 1 :]]


def test_replacements_are_not_in_the_batch_already():
    source = Numbered(60, broken=(5, 6, 7, 8, 9))
    for batch in taken(8 * 6, source, batch_size=10):  # batches do not cross epochs here
        assert len(set(batch.keys)) == 10


@pytest.mark.parametrize("records", [1, 2, 3, 6, 30, 97, 1000])
def test_replacements_are_searched_among_all_records(records):
    for readable in {0, records // 2, records - 1}:
        source = Numbered(records, broken=tuple(index for index in range(records) if index != readable))
        (batch,) = taken(1, source, batch_size=1)
        assert batch.keys == [f"record {readable}"]


def test_no_readable_record_raises():
    with pytest.raises(ValueError, match="none of 3 records can be read; the first is record"):
        taken(1, Numbered(3, broken=(0, 1, 2)))
    with pytest.raises(ValueError, match="none of 3 records can be read; the first is record 0: made so"):
        list(ordered_batches(Numbered(3, broken=(0, 1, 2)), inference_crop, 2))


def test_ordered_visits_every_readable_record_once():
    got = list(ordered_batches(Numbered(8, broken=(1, 7)), inference_crop, 4))
    assert [key for batch in got for key in batch.keys] == [f"record {i}" for i in (0, 2, 3, 4, 5, 6)]
    assert [len(batch.keys) for batch in got] == [4, 2]
    assert got[0].captions[0] == "0 in words"
    assert [list(batch.unreadable) for batch in got] == [["record 1"], ["record 7"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not one of 2 ranks"),
        ({"seed": -1}, "seed -1"),
        ({"start": -1}, "start -1"),
    ],
)
def test_invalid_numbers_raise_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        taken(1, Numbered(4), **options)


def test_empty_source_raises_at_once():
    with pytest.raises(ValueError, match="empty"):
        image_batches(Numbered(0), inference_crop, batch_size=1, seed=0)
    with pytest.raises(ValueError, match="empty"):
        ordered_batches(Numbered(0), inference_crop, 1)


# --- exactness -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_any_micro_batch_of_any_rank_can_be_loaded_alone(world_size):
    source = Numbered(13, broken=(6,))
    for rank in range(world_size):
        whole = taken(9, source, rank=rank, world_size=world_size)
        for number in (7, 0, 5):
            assert_same([whole[number]], taken(1, source, rank=rank, world_size=world_size, start=number))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_no_record_repeats_within_an_epoch_across_ranks(world_size):
    length = 17  # which no batch divides
    ranks = [taken(12, Numbered(length), batch_size=2, rank=rank, world_size=world_size) for rank in range(world_size)]
    stream = [key for step in zip(*ranks, strict=True) for batch in step for key in batch.keys]
    for first in range(0, len(stream) - length + 1, length):
        assert len(set(stream[first : first + length])) == length


class Buggy(Numbered):
    """Source that raises an unexpected exception at record 5."""

    def __getitem__(self, index: int) -> Record:
        if index == 5:
            raise KeyError("width")
        return super().__getitem__(index)


class Deadly(Numbered):
    """Source that ends the process at record 5."""

    def __getitem__(self, index: int) -> Record:
        if index == 5:
            os._exit(1)
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_unexpected_exception_names_the_record(workers):
    with pytest.raises(LoadingError) as caught:
        taken(4, Buggy(10), workers=workers)
    sentence = str(caught.value)
    assert sentence.startswith("record record 5 could not be loaded: KeyError: 'width' (test_loader.py, line ")
    assert "\n" not in sentence


def test_dead_worker_raises_with_the_record():
    stream = image_batches(Deadly(10), inference_crop, batch_size=1, seed=7, workers=1)
    place = [batch.keys[0] for batch in taken(10, Numbered(10), batch_size=1)].index("record 5")
    for _ in range(max(1, place - 1)):  # the worker is two batches ahead
        next(stream)
    time.sleep(1)  # it dies: nothing is to happen here
    with pytest.raises(LoadingError, match="a worker process died at record record 5: it ran out of memory, or"):
        for _ in range(3):
            next(stream)


def test_unreadable_data_in_workers_raises_one_error_and_ends_them():
    before = set(multiprocessing.active_children())
    with pytest.raises(LoadingError) as caught:
        taken(1, Numbered(2, broken=(0, 1)), workers=1)
    assert set(multiprocessing.active_children()) <= before  # although `caught` keeps the frames
    assert str(caught.value).startswith("none of 2 records can be read; the first is record")
    assert "\n" not in str(caught.value)
