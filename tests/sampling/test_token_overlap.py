"""Overlap in token space: equal, shifted and unrelated grids; the background does not count."""

import pytest
import torch
import torch.nn.functional as F

from dalle.sampling.token_overlap import best_shift, cell_levels, move, token_overlap


def grid(seed: int = 0, background: int = 9) -> torch.Tensor:
    """Return an 8 x 8 grid of background with a 4 x 4 square of random tokens in the middle."""
    tokens = torch.full((8, 8), background)
    tokens[2:6, 2:6] = torch.randint(0, 9, (4, 4), generator=torch.Generator().manual_seed(seed))
    return tokens


def test_equal_grids_overlap_wholly():
    assert token_overlap(grid(), grid()) == 1


@pytest.mark.parametrize(("down", "right"), [(1, 0), (0, -2), (-2, 1), (2, 2)])
def test_a_shifted_copy_is_found(down, right):
    moved = torch.roll(grid(), (down, right), dims=(0, 1))
    assert token_overlap(grid(), moved) == token_overlap(moved, grid()) == 1
    assert token_overlap(grid(), moved, max_shift=0) < 0.5


def test_a_shift_loses_what_moves_out():
    tokens = torch.arange(64).reshape(8, 8)
    moved = torch.full((8, 8), 64)
    moved[2:] = tokens[:-2]
    assert token_overlap(tokens, moved) == 48 / 64


def test_a_common_background_is_not_an_overlap():
    assert token_overlap(grid(0), grid(1)) < 0.5
    assert token_overlap(torch.full((8, 8), 9), grid()) == 0
    assert token_overlap(torch.full((8, 8), 9), torch.full((8, 8), 9)) == 1


def test_a_part_of_a_picture_is_not_a_copy_of_it():
    part = grid()
    part[4:] = 9
    assert token_overlap(grid(), part) == token_overlap(part, grid()) == 0.5


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, -2), (-4, 4), (1, 0)])
def test_a_moved_image_is_aligned_to_the_pixel(down, right):
    large = F.interpolate(torch.rand(1, 3, 12, 12, generator=torch.manual_seed(0)), size=48, mode="bicubic")
    target = large[0, :, 8:40, 8:40]
    moved = large[:, :, 8 - down : 40 - down, 8 - right : 40 - right]
    aligned = move(moved[0], *best_shift(moved[0], target, max_shift=4))
    inside = slice(4, -4)
    assert torch.equal(aligned[:, inside, inside], target[:, inside, inside])


def test_an_image_without_contrast_is_aligned_without_error():
    white = torch.ones(3, 8, 8)
    assert torch.equal(move(white, *best_shift(white, white, max_shift=2)), white)


def test_the_largest_difference_of_a_cell_counts():
    image = torch.zeros(3, 8, 8)
    other = image.clone()
    other[1, 4:6, 0:4] = 1  # half of a cell of 4 pixels, in one channel
    assert cell_levels(image, other, 4) == 127.5
    assert cell_levels(image, other, 2) == 255


@pytest.mark.parametrize(("moved", "difference"), [((0, 0), 255), ((3, 0), 255), ((-3, 0), 0), ((0, 3), 0)])
def test_cells_without_content_after_a_move_do_not_count(moved, difference):
    image = torch.zeros(3, 8, 8)
    other = image.clone()
    other[:, 4:, :4] = 1
    assert cell_levels(image, other, 4, moved) == difference
