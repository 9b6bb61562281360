import pytest
import torch
from every_pattern import PATTERNS

from dalle.models.transformer.kv_cache import GatheredIndex, SlicedIndex, layout_of
from dalle.models.transformer.patterns import Column, Convolutional, Dense, Pattern, Row, image_mask

CPU = torch.device("cpu")


@pytest.mark.parametrize("static_shapes", [False, True])
@pytest.mark.parametrize("grid", [1, 2, 4, 7])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_step_finds_exactly_what_the_mask_shows(pattern: Pattern, grid: int, static_shapes: bool):
    layout, mask = layout_of(pattern, grid), image_mask(pattern, grid)
    places = GatheredIndex(layout, CPU) if static_shapes else SlicedIndex(layout, CPU)
    kept = torch.full((2, layout.slots, 1), -1)
    for state in range(grid * grid):
        position = torch.tensor([state]) if static_shapes else state
        places.put(kept, position, torch.full((2, 1, 1), state))
        found, unseen = places.take(kept, position)[0, :, 0], places.unseen(position)
        if unseen is not None:
            found = found[~unseen.flatten()]
        assert sorted(found.tolist()) == mask[state].nonzero().flatten().tolist()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_tables_give_every_step_the_same_shapes(pattern: Pattern):
    layout = layout_of(pattern, 4)
    places, kept = GatheredIndex(layout, CPU), torch.zeros(3, layout.slots, 5)
    positions = [torch.tensor([state]) for state in range(16)]
    assert len({places.take(kept, position).shape for position in positions}) == 1
    assert len({places.unseen(position).shape for position in positions}) == 1
    copied = places.take(kept, positions[0]).data_ptr() != kept.data_ptr()
    assert places.copied == (places.take(kept, positions[0]).shape[1] if copied else 0)


def test_caches_are_as_small_as_the_patterns_allow():
    assert layout_of(Row(), 32).slots == 33
    assert layout_of(Row(counts_itself=False), 32).slots == 34
    assert layout_of(Convolutional(11), 32).slots == 6 * 32  # the lines that the neighbourhood reaches
    assert layout_of(Column(), 32).slots == layout_of(Dense(), 32).slots == 1024


@pytest.mark.parametrize("grid", [1, 2, 4, 7])
@pytest.mark.parametrize("pattern", [*PATTERNS, Convolutional(11), Convolutional(11, wraps=False)], ids=str)
def test_no_cache_is_larger_than_the_image(pattern: Pattern, grid: int):
    assert layout_of(pattern, grid).slots <= grid * grid


def test_steps_read_little_more_than_they_see():
    def read(pattern: Pattern) -> int:
        return sum(stretch.stop - stretch.start for stretch in layout_of(pattern, 32).read)

    def seen(pattern: Pattern) -> int:
        return int(image_mask(pattern, 32).sum())

    for pattern in (Dense(), Row(), Row(counts_itself=False), Column()):
        assert read(pattern) == seen(pattern)
    assert read(Convolutional(11, wraps=False)) < 1.15 * seen(Convolutional(11, wraps=False))
    assert read(Convolutional(11)) < 1.85 * seen(Convolutional(11))  # at the edges it wraps, and reads all


@pytest.mark.parametrize("pattern", [Dense(), Row(), Row(counts_itself=False), Column()], ids=str)
def test_only_convolutional_slices_need_a_mask(pattern: Pattern):
    assert SlicedIndex(layout_of(pattern, 8), CPU).unseen(29) is None
    assert layout_of(Column(), 8).read[29] == slice(5 * 8, 5 * 8 + 4)


def test_a_cache_that_forgets_too_early_is_refused():
    class Forgetful(Dense):
        def slot(self, state, grid):
            return state % 3

    with pytest.raises(ValueError, match="image state 3 needs"):
        layout_of(Forgetful(), 4)
