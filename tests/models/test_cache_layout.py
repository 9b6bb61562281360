"""Layouts of KV caches: their sizes, and that a step reads the keys that its pattern attends to."""

import pytest
import torch
from every_pattern import PATTERNS

from dalle.models.transformer.cache_layout import GatheredIndex, SlicedIndex, cache_layout
from dalle.models.transformer.patterns import Column, Convolutional, Dense, Pattern, Row, image_attend_mask

CPU = torch.device("cpu")


@pytest.mark.parametrize("static_shapes", [False, True])
@pytest.mark.parametrize("grid", [1, 2, 4, 7])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_step_reads_exactly_the_keys_that_the_pattern_attends_to(pattern: Pattern, grid: int, static_shapes: bool):
    layout, attend_mask = cache_layout(pattern, grid), image_attend_mask(pattern, grid)
    index = GatheredIndex(layout, CPU) if static_shapes else SlicedIndex(layout, CPU)
    cached = torch.full((2, layout.slots, 1), -1)
    for number in range(grid * grid):
        position = torch.tensor([number]) if static_shapes else number
        index.write(cached, position, torch.full((2, 1, 1), number))
        keys, masked = index.read(cached, position)[0, :, 0], index.masked(position)
        if masked is not None:
            keys = keys[~masked.flatten()]
        assert sorted(keys.tolist()) == attend_mask[number].nonzero().flatten().tolist()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_gathered_reads_have_the_same_shapes_at_every_step(pattern: Pattern):
    layout = cache_layout(pattern, 4)
    index, cached = GatheredIndex(layout, CPU), torch.zeros(3, layout.slots, 5)
    positions = [torch.tensor([number]) for number in range(16)]
    assert len({index.read(cached, position).shape for position in positions}) == 1
    assert len({index.masked(position).shape for position in positions}) == 1
    copied = index.read(cached, positions[0]).data_ptr() != cached.data_ptr()
    assert index.copied_slots == (index.read(cached, positions[0]).shape[1] if copied else 0)


def test_caches_are_as_small_as_the_patterns_allow():
    assert cache_layout(Row(), 32).slots == 33
    assert cache_layout(Row(counts_itself=False), 32).slots == 34
    assert cache_layout(Convolutional(11), 32).slots == 6 * 32  # the rows of the neighbourhood
    assert cache_layout(Column(), 32).slots == cache_layout(Dense(), 32).slots == 1024


@pytest.mark.parametrize("grid", [1, 2, 4, 7])
@pytest.mark.parametrize("pattern", [*PATTERNS, Convolutional(11), Convolutional(11, wraps=False)], ids=str)
def test_no_cache_is_larger_than_the_image(pattern: Pattern, grid: int):
    assert cache_layout(pattern, grid).slots <= grid * grid


def test_steps_read_little_more_than_they_attend_to():
    def read(pattern: Pattern) -> int:
        return sum(slots.stop - slots.start for slots in cache_layout(pattern, 32).read_slices)

    def attended(pattern: Pattern) -> int:
        return int(image_attend_mask(pattern, 32).sum())

    for pattern in (Dense(), Row(), Row(counts_itself=False), Column()):
        assert read(pattern) == attended(pattern)
    assert read(Convolutional(11, wraps=False)) < 1.15 * attended(Convolutional(11, wraps=False))
    assert read(Convolutional(11)) < 1.85 * attended(Convolutional(11))  # at the edges it wraps, and reads all


@pytest.mark.parametrize("pattern", [Dense(), Row(), Row(counts_itself=False), Column()], ids=str)
def test_only_convolutional_slices_need_a_mask(pattern: Pattern):
    assert SlicedIndex(cache_layout(pattern, 8), CPU).masked(29) is None
    assert cache_layout(Column(), 8).read_slices[29] == slice(5 * 8, 5 * 8 + 4)


def test_a_pattern_that_overwrites_a_key_too_early_is_rejected():
    class OverwritesTooEarly(Dense):
        def slot(self, position, grid):
            return position % 3

    with pytest.raises(ValueError, match="image position 3 attends to"):
        cache_layout(OverwritesTooEarly(), 4)
