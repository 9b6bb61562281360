"""Explanations of a picture in the browser: attention to each word, and the nearest training pictures."""

import base64
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from studio_page import StudioPage, png_bytes
from studio_process import StudioProcess

from dalle import checkpoint
from dalle.data import open_source
from dalle.data.blocks import BlocksConfig

DATA = BlocksConfig(image_size=8, train=20)
CAPTION = "a small red circle above a large blue square"


@pytest.fixture(scope="module")
def trained_studio(browser, checkpoints, tmp_path_factory) -> Iterator[StudioProcess]:
    """Studio of a tiny model that records `DATA` as its training data."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(checkpoints, folder / "model")
    path = folder / "model" / "transformer" / checkpoint.CONFIG
    config = json.loads(path.read_text())
    config["meta"]["data"] = asdict(DATA)
    path.write_text(json.dumps(config))
    with StudioProcess("model", ["novelty=true"], folder=folder) as studio:
        yield studio


@pytest.fixture
def trained_page(trained_studio, open_studio) -> StudioPage:
    return open_studio(trained_studio)


def test_the_nearest_training_picture_of_a_slightly_changed_one_is_the_original(trained_page):
    page, source = trained_page.page, open_source(DATA, "train")
    original = source[7].image.convert("RGB")
    trained_page.set(candidates=1, seed=0)
    trained_page.drop(png_bytes(original), "seven.png")
    expect(trained_page.status).to_contain_text("has no settings inside")
    trained_page.caption.fill(CAPTION)
    trained_page.open_picture()
    expect(page.locator("#nearest")).to_be_hidden()  # only drawn pictures are compared
    page.fill("#edit-caption", CAPTION)
    page.click("#mask-start")
    page.fill("#brush", "1")
    trained_page.brush((0.95, 0.95))
    trained_page.edit("#inpaint")
    trained_page.open_picture()
    page.click("#nearest > summary")
    expect(page.locator("#nearest-note")).to_have_text("Of 20 training pictures.", timeout=60_000)
    shown = page.locator("#nearest-list li").first
    expect(shown).to_contain_text(source.captions(7)[0])
    data = (shown.locator("img").get_attribute("src") or "").partition(",")[2]
    assert np.array_equal(Image.open(io.BytesIO(base64.b64decode(data))), original)


def test_each_word_has_its_own_heat_map_exactly_over_the_picture(trained_page):
    page = trained_page.page
    trained_page.set(candidates=1, seed=5)
    trained_page.draw("one circle left of a square")
    trained_page.open_picture()
    page.click("#words > summary")
    words = page.locator("#words-list button")
    expect(words).to_have_count(6)
    assert words.all_inner_texts() == ["one", "circle", "left", "of", "a", "square"]
    heat, maps = page.locator("#heat"), set()
    expect(heat).to_be_hidden()
    for index in range(6):
        words.nth(index).click()
        expect(heat).to_be_visible()
        assert heat.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
        maps.add(heat.get_attribute("src"))
        assert heat.bounding_box() == page.locator("#viewer-image").bounding_box()
        pressed = page.locator("#words-list button[aria-pressed=true]")
        expect(pressed).to_have_count(1)
        expect(heat).to_have_attribute("alt", f"Attention to “{pressed.inner_text()}”")
    assert len(maps) == 6
    words.nth(5).click()
    expect(heat).to_be_hidden()


def test_nearest_training_pictures_are_left_out_where_there_are_none(tiny_page):
    tiny_page.set(candidates=1)
    tiny_page.draw(CAPTION)
    tiny_page.open_picture()
    expect(tiny_page.page.locator("#nearest")).to_be_hidden()
