"""Overlap in token space: equal, shifted and unrelated grids; the background does not count."""

import pytest
import torch

from dalle.sampling.token_overlap import token_overlap


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
