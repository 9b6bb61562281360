"""The large view in the browser: mask, extend, vary, settings in pictures, dropped files."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from studio_page import png_bytes

from dalle.sampling.image_record import encode_png

CAPTION = "a small red circle above a large blue square"


@pytest.fixture
def drawn(tiny_page):
    """Page with two pictures of one drawing."""
    tiny_page.set(candidates=2, seed=5, temperature=0.7)
    tiny_page.draw(CAPTION)
    return tiny_page


def test_inpainting_keeps_what_the_mask_leaves_out(drawn):
    original = np.asarray(drawn.download())
    drawn.set(candidates=8)
    drawn.open_picture()
    drawn.page.click("#mask-start")
    drawn.page.fill("#brush", "8")
    drawn.brush((0.8, 0.8), (0.8, 0.85))  # the tokens at the lower right
    drawn.edit("#inpaint")
    expect(drawn.history.first).to_contain_text("inpaint")
    results = [np.asarray(drawn.download(place)) for place in range(8)]
    for result in results:
        assert np.array_equal(result[:4], original[:4])  # the upper half
    assert any(not np.array_equal(result, original) for result in results)


def test_undo_redo_and_clear_change_the_mask(drawn):
    drawn.open_picture()
    drawn.page.click("#mask-start")
    undo, redo, clear = (drawn.page.locator(f"#{name}") for name in ("undo", "redo", "clear"))
    expect(undo).to_be_disabled()
    drawn.brush((0.2, 0.2), (0.4, 0.2))
    one = drawn.mask_pixels()
    drawn.brush((0.2, 0.8), (0.8, 0.8))
    two = drawn.mask_pixels()
    assert 0 < one < two
    undo.click()
    assert drawn.mask_pixels() == one
    drawn.page.keyboard.press("Control+z")
    assert drawn.mask_pixels() == 0
    drawn.page.keyboard.press("Control+Shift+Z")
    redo.click()
    assert drawn.mask_pixels() == two
    expect(redo).to_be_disabled()
    clear.click()
    assert drawn.mask_pixels() == 0
    undo.click()
    assert drawn.mask_pixels() == two
    drawn.brush((0.5, 0.5))
    expect(redo).to_be_disabled()  # a new stroke ends what can be redone


def test_an_empty_mask_is_refused_in_a_sentence(drawn):
    drawn.open_picture()
    drawn.page.click("#mask-start")
    drawn.page.click("#inpaint")
    expect(drawn.page.locator("#viewer-error")).to_contain_text("The mask is empty")
    drawn.brush((0.5, 0.5))
    drawn.page.click("#clear")
    drawn.page.click("#inpaint")
    expect(drawn.page.locator("#viewer-error")).to_contain_text("The mask is empty")
    assert drawn.history.count() == 1


@pytest.mark.parametrize(
    ("direction", "size", "kept"),
    [
        ("left", (10, 8), np.s_[:, 2:]),
        ("right", (10, 8), np.s_[:, :8]),
        ("up", (8, 10), np.s_[2:]),
        ("down", (8, 10), np.s_[:8]),
    ],
)
def test_a_picture_is_extended_on_the_side_that_was_chosen(drawn, direction, size, kept):
    original = np.asarray(drawn.download())
    drawn.open_picture()
    drawn.edit(f"[data-direction={direction}]")
    extended = drawn.download()
    assert extended.size == size
    assert np.array_equal(np.asarray(extended)[kept], original)


def test_variations_are_new_pictures_of_the_same_caption(drawn):
    original = np.asarray(drawn.download())
    drawn.set(candidates=4)
    drawn.open_picture()
    drawn.edit("#vary-strongly")
    expect(drawn.pictures).to_have_count(4)
    expect(drawn.history.first).to_contain_text(CAPTION)
    assert any(not np.array_equal(drawn.download(place), original) for place in range(4))


def test_a_changed_picture_can_have_another_caption(drawn):
    drawn.open_picture()
    drawn.page.fill("#edit-caption", "three green triangles")
    drawn.edit("#vary-subtly")
    expect(drawn.history.first).to_contain_text("three green triangles")
    assert drawn.value("caption") == CAPTION


def test_a_downloaded_picture_holds_its_settings_and_a_dropped_one_restores_them(drawn):
    picture = drawn.download(1)
    text = json.dumps(picture.info)
    assert CAPTION in text and "seed" in text
    file = io.BytesIO()
    chunks = picture.text  # type: ignore[attr-defined]
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, value in chunks.items():
        info.add_text(name, value)
    picture.save(file, "PNG", pnginfo=info)
    drawn.caption.fill("something else")
    drawn.page.click("#settings-reset")
    drawn.drop(file.getvalue(), "apple.png")
    expect(drawn.status).to_contain_text("The settings of “apple.png” are in the form")
    assert drawn.value("caption") == CAPTION
    assert (drawn.value("seed"), drawn.value("temperature")) == ("5", "0.7")
    drawn.open_picture()  # the dropped picture
    drawn.edit("#vary-subtly")


def test_a_picture_by_a_decoder_that_this_studio_lacks_brings_its_other_settings(tiny_page):
    settings = {"candidates": 2, "keep": 1, "temperature": 0.6, "decoder": "outputs/decoder", "digests": {}}
    settings |= {"edit": {"kind": "vary"}, "decoder_steps": 4}
    record = {"caption": CAPTION, "seed": 8, "candidate": 1, "rank": 1, "settings": settings}
    tiny_page.drop(encode_png(Image.new("RGB", (8, 8), "red"), record), "decoded.png")
    expect(tiny_page.status).to_contain_text("without the edit, the diffusion decoder, and decoder-steps")
    assert (tiny_page.value("seed"), tiny_page.value("temperature")) == ("8", "0.6")
    expect(tiny_page.page.locator("[name=decoder]")).to_be_hidden()
    tiny_page.page.click("#draw")
    tiny_page.wait_until_done()
    expect(tiny_page.status).to_contain_text("1 picture")


def test_settings_of_an_earlier_picture_are_used_again(drawn):
    drawn.caption.fill("something else")
    drawn.page.click("#settings-reset")
    drawn.open_picture()
    drawn.page.click("#reuse")
    expect(drawn.viewer).to_be_hidden()
    assert drawn.value("caption") == CAPTION
    assert (drawn.value("seed"), drawn.value("temperature"), drawn.value("candidates")) == ("5", "0.7", "2")


def test_ranking_by_the_models_score_is_the_default_and_a_file_names_the_score(tiny_page):
    page, rank_by = tiny_page.page, tiny_page.page.locator("#settings [name=rerank]")
    tiny_page.set(candidates=2)
    expect(rank_by).to_have_value("")
    expect(rank_by.locator("option:checked")).to_have_text("the model’s (CLIP)")
    for chosen, recorded in (("", "clip"), ("image_likelihood", "image_likelihood")):
        rank_by.select_option(chosen)
        tiny_page.draw(CAPTION)
        assert json.loads(tiny_page.download().text["settings"])["rerank"] == recorded  # type: ignore[attr-defined]
        page.click("#settings-reset")
        expect(rank_by).to_have_value("")
        tiny_page.open_picture()
        page.click("#reuse")
        expect(rank_by).to_have_value(chosen)


def test_a_photo_without_settings_can_be_edited(tiny_page):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8))
    tiny_page.set(candidates=2)
    tiny_page.caption.fill("three green triangles")
    tiny_page.drop(png_bytes(photo), "photo.png")
    expect(tiny_page.status).to_contain_text("has no settings inside")
    assert tiny_page.value("caption") == "three green triangles"
    tiny_page.open_picture()
    tiny_page.page.click("#mask-start")
    tiny_page.brush((0.5, 0.5))
    tiny_page.edit("#inpaint")
    expect(tiny_page.pictures).to_have_count(2)


@pytest.mark.parametrize(
    ("data", "name", "kind"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "a.svg", "image/svg+xml"),
        (b"not a picture", "notes.txt", "text/plain"),
        (b"\x89PNG\r\n\x1a\n broken", "broken.png", "image/png"),
        (png_bytes(Image.new("1", (10_000, 10_000))), "huge.png", "image/png"),
    ],
)
def test_a_dropped_file_that_is_no_usable_picture_is_refused_in_a_sentence(tiny_page, data, name, kind):
    tiny_page.drop(data, name, kind)
    expect(tiny_page.error).to_contain_text("more than 50 million" if name == "huge.png" else "not an image")
    assert tiny_page.error.inner_text().endswith(".")
    assert tiny_page.history.count() == 0


def test_arrow_keys_step_through_the_pictures_of_a_drawing(drawn):
    drawn.open_picture(0)
    place = drawn.page.locator("#viewer-place")
    expect(place).to_have_text("1 of 2")
    drawn.page.locator("#next").focus()
    drawn.page.keyboard.press("ArrowRight")
    expect(place).to_have_text("2 of 2")
    expect(drawn.page.locator("#next")).to_be_disabled()
    drawn.page.keyboard.press("Escape")
    expect(drawn.pictures.nth(1)).to_be_focused()
