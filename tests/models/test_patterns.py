from dataclasses import fields

import pytest
import torch
from every_pattern import OPTIONS, VARIANTS
from every_pattern import PATTERNS as EVERY_PATTERN

from dalle.models.transformer.patterns import (
    PATTERNS,
    Column,
    Convolutional,
    Dense,
    Pattern,
    PatternOptions,
    Row,
    image_attend_mask,
    pattern_names,
    sequence_attend_mask,
)


def test_every_pattern_and_option_is_tested():
    assert VARIANTS.keys() == PATTERNS.keys(), "add a pattern to VARIANTS in tests/models/every_pattern.py"
    for name, variants in VARIANTS.items():
        assert {type(pattern) for pattern in variants} == {type(PATTERNS[name].build(PatternOptions()))}
        for option in fields(variants[0]):
            assert len({getattr(pattern, option.name) for pattern in variants}) > 1, (
                f"{name}: {option.name} has one value"
            )
    tested = {option for options in OPTIONS for option in options} | {"kernel"}
    assert tested == {option.name for option in fields(PatternOptions)}, "add an option to OPTIONS"


def drawn_keys(pattern: Pattern, grid: int, row: int, column: int) -> set[tuple[int, int]]:
    """Return the cells that a cell attends to by the paper's description, from two coordinates at a time."""
    cells = [(r, c) for r in range(grid) for c in range(grid)]
    place = cells.index((row, column))
    past = cells[: place + 1]
    match pattern:
        case Dense():
            return set(past)
        case Row():
            # the cell straight above and all that follow it; or one more
            return set(past[-(grid + 1) :] if pattern.counts_itself else past[-(grid + 2) :])
        case Column():
            return {(r, c) for r, c in past if c == column}
        case Convolutional():
            half = pattern.kernel // 2
            seen = set()
            for up in range(half + 1):
                for right in range(-half, half + 1):
                    # stepping off a row's end goes on in the next one, as reading does, or leaves the picture
                    lines, wrapped = divmod(column + right, grid)
                    target = (row - up + lines, wrapped)
                    if target in past and (pattern.wraps or lines == 0):
                        seen.add(target)
            return seen
    raise AssertionError(pattern)


@pytest.mark.parametrize("grid", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("pattern", EVERY_PATTERN, ids=str)
def test_masks_match_the_paper(pattern: Pattern, grid: int):
    attend_mask = image_attend_mask(pattern, grid)
    for query in range(grid * grid):
        seen = {divmod(key, grid) for key in attend_mask[query].nonzero().flatten().tolist()}
        assert seen == drawn_keys(pattern, grid, *divmod(query, grid))


def test_row_attends_to_five_cells_of_a_grid_four_wide():
    assert image_attend_mask(Row(), 4)[9].nonzero().flatten().tolist() == [5, 6, 7, 8, 9]


def test_row_without_its_own_cell_attends_to_five_cells_before_it():
    assert image_attend_mask(Row(counts_itself=False), 4)[9].nonzero().flatten().tolist() == [4, 5, 6, 7, 8, 9]


def test_column_attends_to_cells_above_and_itself():
    assert image_attend_mask(Column(), 4)[13].nonzero().flatten().tolist() == [1, 5, 9, 13]


def test_convolution_attends_to_a_causal_neighbourhood():
    assert image_attend_mask(Convolutional(3), 4)[10].nonzero().flatten().tolist() == [5, 6, 7, 9, 10]


def test_convolution_wraps_over_rows():
    assert image_attend_mask(Convolutional(3), 4)[8].nonzero().flatten().tolist() == [3, 4, 5, 7, 8]


def test_clamped_convolution_ends_at_image_edges():
    attend_mask = image_attend_mask(Convolutional(3, wraps=False), 4)
    assert attend_mask[8].nonzero().flatten().tolist() == [4, 5, 8]
    assert attend_mask[11].nonzero().flatten().tolist() == [6, 7, 10, 11]
    assert attend_mask[10].equal(image_attend_mask(Convolutional(3), 4)[10])  # away from the edges nothing changes


@pytest.mark.parametrize("wraps", [True, False])
def test_a_kernel_larger_than_the_image_attends_to_all_before(wraps):
    for kernel in (9, 10**30 + 1):  # of an untrusted file, say: it takes no longer
        assert image_attend_mask(Convolutional(kernel, wraps), 4).equal(image_attend_mask(Dense(), 4))
    assert not image_attend_mask(Convolutional(5, wraps), 4).equal(image_attend_mask(Dense(), 4))


def test_full_size_convolution_attends_to_61_cells_in_the_middle():
    assert image_attend_mask(Convolutional(11), 32)[20 * 32 + 16].sum() == 5 * 11 + 6


@pytest.mark.parametrize("pattern", EVERY_PATTERN, ids=str)
def test_text_is_causal_and_images_attend_to_all_text(pattern: Pattern):
    attend_mask = sequence_attend_mask(pattern, 5, 3)
    assert attend_mask[:5, :5].equal(torch.ones(5, 5, dtype=torch.bool).tril())
    assert not attend_mask[:5, 5:].any()
    assert attend_mask[5:, :5].all()
    assert attend_mask[5:, 5:].equal(image_attend_mask(pattern, 3))


def test_order_of_64_layers_is_the_papers():
    names = pattern_names(["paper"], 64)
    assert names[:8] == ["row", "column", "row", "row", "row", "column", "row", "row"]
    assert names[-1] == "convolutional"
    assert [names.count(name) for name in ("column", "row", "convolutional")] == [16, 47, 1]


def test_one_name_sets_every_layer():
    assert pattern_names(["dense"], 3) == ["dense"] * 3


def test_each_layer_can_have_its_own_pattern():
    assert pattern_names(["row", "column"], 2) == ["row", "column"]


def test_list_of_wrong_length_raises():
    with pytest.raises(ValueError, match=r"3 layers but depth=2"):
        pattern_names(["row", "row", "row"], 2)


def test_patterns_are_built_from_names_and_settings():
    assert [PATTERNS[name].build(PatternOptions()) for name in ("dense", "row", "column")] == [Dense(), Row(), Column()]
    assert PATTERNS["row"].build(PatternOptions(row_counts_itself=False)) == Row(counts_itself=False)
    assert PATTERNS["convolutional"].build(PatternOptions(5, convolution_wraps=False)) == Convolutional(5, wraps=False)


def test_unknown_pattern_lists_the_choices():
    with pytest.raises(ValueError, match=rf"'diagonal'.*{', '.join(PATTERNS)}"):
        PATTERNS.lookup("diagonal")


def test_even_kernel_raises():
    with pytest.raises(ValueError, match="odd kernel, not 4"):
        Convolutional(4)
