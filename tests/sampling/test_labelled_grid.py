import numpy as np
import pytest
from PIL import Image

from dalle.image_grid import PAPER
from dalle.sampling.labelled_grid import ImageRow, labelled_grid

RED, BLUE = (255, 0, 0), (0, 0, 255)


def squares(*colours: tuple[int, int, int]) -> list[Image.Image]:
    return [Image.new("RGB", (16, 16), colour) for colour in colours]


def has(sheet: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.asarray(sheet) == colour).all(axis=-1)


def test_images_keep_their_full_size():
    sheet = labelled_grid([ImageRow("one", squares(RED, RED, BLUE), [0.3, 0.2, 0.1])], tile=20)
    assert has(sheet, RED).sum() == 2 * 400
    assert has(sheet, BLUE).sum() == 400


def test_best_candidate_comes_first():
    sheet = labelled_grid([ImageRow("one", squares(BLUE, RED), [0.3, 0.2])], tile=20)
    assert has(sheet, BLUE).nonzero()[1].max() < has(sheet, RED).nonzero()[1].min()


def test_long_rows_wrap():
    sheet = labelled_grid([ImageRow("one", squares(RED, RED, BLUE), None)], columns=2, tile=20)
    assert has(sheet, BLUE).nonzero()[0].min() > has(sheet, RED).nonzero()[0].max()


def test_captions_are_stacked_and_scores_take_room():
    rows = [ImageRow("one", squares(RED), [0.3]), ImageRow("two", squares(BLUE), [0.3])]
    sheet = labelled_grid(rows)
    assert has(sheet, BLUE).nonzero()[0].min() > has(sheet, RED).nonzero()[0].max()
    assert sheet.height > labelled_grid([row._replace(scores=None) for row in rows]).height


def test_long_caption_wraps_within_the_grid():
    short = labelled_grid([ImageRow("a circle", squares(RED), None)])
    long = labelled_grid([ImageRow("a circle " * 20 + "b" * 200, squares(RED), None)])
    assert long.width == short.width
    assert long.height > short.height
    paper = np.asarray(Image.new("RGB", (1, 1), PAPER))[0, 0]
    assert (np.asarray(long)[:, -8:] == paper).all()


def test_empty_grid_raises():
    with pytest.raises(ValueError, match="at least one cell"):
        labelled_grid([])


def test_note_is_at_the_bottom():
    row = ImageRow("one", squares(RED), None)
    plain, noted = labelled_grid([row]), labelled_grid([row], note="and 5 more captions")
    assert noted.height > plain.height
    top = np.asarray(noted)[: plain.height - 24]
    assert (top == np.asarray(plain)[: plain.height - 24]).all()
    assert (np.asarray(noted)[plain.height - 24 :] != 255).any()
