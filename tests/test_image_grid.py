"""Grids of labelled images: positions, labels within their columns, and notes."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from dalle.image_grid import (
    GAP,
    LABEL_LINES,
    LABEL_SIZE,
    MARGIN,
    MIN_WIDTH,
    NOTE_LINES,
    TITLE_SIZE,
    Cell,
    GridRow,
    _ending,
    fitted,
    image_grid,
    line_height,
    wrap,
)

FONT = ImageFont.load_default(LABEL_SIZE)
RED, BLUE = Image.new("RGB", (30, 30), "red"), Image.new("RGB", (30, 30), "blue")
TEXTS = ("a large red square resting on a small blue square", "x" * 300, "a\nb\x07 " * 40, "photos/2019/summer/17.jpg")


def places(sheet: Image.Image, colour: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns of the pixels of a colour."""
    return (np.asarray(sheet) == np.asarray(Image.new("RGB", (1, 1), colour))[0, 0]).all(axis=-1).nonzero()


def text_extent(sheet: Image.Image) -> np.ndarray:
    """Return text pixels, bool (h, w): those darker than hairlines, for images without dark colours."""
    return (np.asarray(sheet.convert("L")) < 180) & (np.asarray(sheet).max(axis=-1) < 180)


def test_images_are_placed_by_row_and_cells_can_be_empty():
    sheet = image_grid([GridRow([Cell(RED, "one"), Cell(None), Cell(BLUE, "two", "a note")])], columns=2, tile=40)
    red, blue = places(sheet, "red"), places(sheet, "blue")
    assert len(red[0]) == len(blue[0]) == 40 * 40
    assert (red[0].min(), red[1].min(), blue[1].min()) == (MARGIN, MARGIN, MARGIN)
    assert blue[0].min() > red[0].max() + line_height(LABEL_SIZE)


@pytest.mark.parametrize(("size", "shown"), [((30, 30), (40, 40)), ((60, 30), (40, 20)), ((1, 90_000), (1, 40))])
def test_images_keep_their_aspect_ratio(size, shown):
    assert fitted(Image.new("RGB", size), 40).size == shown
    sheet = image_grid([GridRow([Cell(Image.new("RGB", size, "red"))])], tile=40)
    assert len(places(sheet, "red")[0]) == shown[0] * shown[1]


def test_frame_surrounds_only_its_image():
    sheet = image_grid([GridRow([Cell(RED, frame="#00ff00"), Cell(BLUE, frame="#00ffff")])], tile=40)
    for picture, frame in (("red", "#00ff00"), ("blue", "#00ffff")):
        inner, outer = places(sheet, picture), places(sheet, frame)
        assert len(inner[0]) == 40 * 40
        for axis in (0, 1):
            assert outer[axis].min() == inner[axis].min() - 3
            assert outer[axis].max() == inner[axis].max() + 3


@pytest.mark.parametrize("text", TEXTS)
def test_labels_and_notes_stay_within_their_column(text):
    label, note = wrap(text, FONT, 100, LABEL_LINES), _ending(text, FONT, 100)
    assert 1 <= len(label) <= LABEL_LINES and 1 <= len(note) <= NOTE_LINES
    assert all(FONT.getlength(line) <= 100 for line in (*label, *note))


def test_too_long_text_is_truncated_with_an_ellipsis():
    assert wrap("x" * 300, FONT, 100, 2)[1].endswith("x...")
    assert wrap("one two", FONT, 100, 2) == ["one two"]
    (note,) = _ending("photos/2019/summer/at/the/beach/in/the/evening/holiday-0017.jpg", FONT, 100)
    assert note.startswith("...") and note.endswith("0017.jpg")


def test_labels_of_neighbours_do_not_touch():
    cells = [Cell(RED, "W" * 500, "W" * 500), Cell(BLUE, "W" * 500, "W" * 500)]
    ink = text_extent(image_grid([GridRow(cells)], tile=80))
    between = slice(MARGIN + 80, MARGIN + 80 + GAP)
    assert ink[:, MARGIN : MARGIN + 80].any() and ink[:, between.stop : between.stop + 80].any()
    assert not ink[:, between].any()


def test_titles_and_notes_do_not_overlap_images():
    """Descenders end above the images, and those of the last line above the bottom edge."""
    row = GridRow([Cell(RED, "gjpqy")], "gjpqy " * 40)
    sheet = image_grid([row, row], tile=40, title="gjpqy " * 40, notes=["gjpqy " * 60, "", "gjpqy"])
    ink = text_extent(sheet)
    assert not ink[:MARGIN].any() and not ink[-MARGIN:].any()
    assert not ink[:, :MARGIN].any() and not ink[:, -MARGIN:].any()
    tops = np.unique(places(sheet, "red")[0])
    assert len(tops) == 80
    for top in (tops[0], tops[40]):
        assert not ink[top - 3 : top].any()
        assert ink[top - TITLE_SIZE : top].any()


def test_single_small_image_leaves_room_for_its_title():
    assert image_grid([GridRow([Cell(RED)], "a title")], tile=20).width == MIN_WIDTH + 2 * MARGIN


def test_empty_grid_raises():
    for rows in ([], [GridRow([], "a title")]):
        with pytest.raises(ValueError, match="at least one cell"):
            image_grid(rows)
