import pytest
from PIL import Image, ImageFont

from dalle.data.tiles import LETTERS, MARGIN, Tile, _label, _note, tile_sheet

FONT = ImageFont.load_default(LETTERS)
RED = Image.new("RGB", (30, 30), "red")


def test_pictures_stand_row_by_row_and_a_place_can_be_free():
    sheet = tile_sheet([Tile(RED, "one"), Tile(None, ""), Tile(RED, "two", "a note")], columns=2, side=40)
    middle = MARGIN + 20
    assert sheet.getpixel((middle, middle)) == (255, 0, 0)
    assert sheet.getpixel((middle + 50, middle)) == (255, 255, 255)
    below = [sheet.getpixel((middle, y)) for y in range(middle + 45, sheet.height)]
    assert (255, 0, 0) in below


def test_text_stays_within_its_column():
    for text in ("a large red circle resting on a small blue square", "x" * 300, "a\nb\x07 " * 9):
        assert all(FONT.getlength(line.removesuffix(" ...")) <= 100 for line in _label(text, FONT, 100))
        assert all(FONT.getlength(line) <= 100 for line in _note(text, FONT, 100))
    assert _note("photos/2019/summer/holiday-0017.jpg", FONT, 100)[0].endswith("0017.jpg")
    assert _note("", FONT, 100) == []


def test_a_sheet_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no pictures"):
        tile_sheet([])
