"""Drawing in the browser: pictures fill in, cancel, history, two tabs, errors, a restarted server."""

import re

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from studio_process import StudioProcess

from dalle import DALLE

CAPTION = "a small red circle above a large blue square"
WATCH_ROWS = """() => {
  window.rows = [];
  new MutationObserver((changes) => {
    for (const { target } of changes) {
      const picture = document.querySelector("#pictures li");
      if (picture?.contains(target) && target.dataset.rows) {
        window.rows.push([Number(target.dataset.rows), document.getElementById("cancel").hidden]);
      }
    }
  }).observe(document.getElementById("pictures"), { subtree: true, attributes: true, attributeFilter: ["data-rows"] });
}"""


def test_a_picture_fills_in_row_by_row_and_cancel_keeps_those_that_are_finished(drawings_studio, open_studio):
    studio = open_studio(drawings_studio)
    studio.set(candidates=64, seed=3)
    studio.page.evaluate(WATCH_ROWS)
    studio.draw("a red apple", wait=False)
    expect(studio.pictures).to_have_count(64)
    expect(studio.finished.first).to_be_visible(timeout=60_000)
    rows = studio.page.evaluate("() => window.rows")
    assert len(rows) > 2 and rows == sorted(rows)  # several previews, each with more rows
    assert not any(done for _, done in rows)  # before the drawing was done
    studio.page.keyboard.press("Escape")
    studio.page.locator("#cancel").wait_for(state="hidden", timeout=90_000)
    expect(studio.status).to_contain_text("Cancelled.")
    kept = studio.finished.count()
    assert 1 <= kept < 64
    expect(studio.pictures).to_have_count(kept)
    assert f"{kept} finished picture" in studio.status.inner_text()
    assert studio.download().size == (128, 128)


def test_pictures_are_those_of_the_seed_best_first(tiny_page, checkpoints):
    tiny_page.set(candidates=5, seed=4, temperature=0.9)
    tiny_page.draw(CAPTION)
    expect(tiny_page.status).to_contain_text("5 pictures")
    expected = DALLE.load(checkpoints).generate(CAPTION, candidates=5, keep=5, seed=4, temperature=0.9)
    assert expected.scores is not None
    labels = tiny_page.page.locator(".label-of-picture").all_inner_texts()
    assert labels == [f"{place} · {score:.3f}" for place, score in enumerate(expected.scores, 1)]
    for place, image in enumerate(expected.images):
        file = tiny_page.download(place)
        assert np.array_equal(file, image)
        assert (file.info["rank"], float(file.info["score"])) == (
            str(place + 1),
            pytest.approx(expected.scores[place], abs=1e-5),
        )


def test_the_diffusion_decoder_is_offered_where_there_is_one(browser, checkpoints, decoder_folder, open_studio):
    with StudioProcess(checkpoints, [f"decoder={decoder_folder}"]) as studio:
        page = open_studio(studio)
        page.set(candidates=3, keep=2, seed=4)
        page.draw(CAPTION)
        plain = [np.asarray(page.download(place)) for place in range(2)]
        page.page.check("[name=decoder]")
        page.draw(CAPTION)
        model = DALLE.load(checkpoints, decoder=decoder_folder)
        expected = model.generate(CAPTION, candidates=3, keep=2, seed=4)
        decoded = [np.asarray(page.download(place)) for place in range(2)]
        assert all(np.array_equal(*pair) for pair in zip(decoded, expected.images, strict=True))
        assert not any(np.array_equal(*pair) for pair in zip(decoded, plain, strict=True))
        page.history.nth(1).click()
        page.open_picture()
        page.page.click("#reuse")
        expect(page.page.locator("[name=decoder]")).not_to_be_checked()


def test_keep_shows_the_best_only(tiny_page):
    tiny_page.set(candidates=6, keep=2, seed=0)
    tiny_page.draw(CAPTION)
    expect(tiny_page.pictures).to_have_count(2)


def test_the_history_returns_to_earlier_drawings_also_after_a_reload(tiny_page):
    tiny_page.set(candidates=2, seed=1)
    tiny_page.draw("three green triangles")
    tiny_page.draw(CAPTION)
    expect(tiny_page.pictures.first.locator("img")).to_have_attribute("alt", re.compile(CAPTION))
    tiny_page.history.nth(1).click()
    expect(tiny_page.pictures.first.locator("img")).to_have_attribute("alt", re.compile("three green triangles"))
    expect(tiny_page.history.nth(1)).to_have_attribute("aria-current", "true")
    before = np.asarray(tiny_page.download())
    tiny_page.page.reload()
    expect(tiny_page.history).to_have_count(2)
    tiny_page.history.nth(1).click()
    assert np.array_equal(tiny_page.download(), before)
    assert tiny_page.value("caption") == CAPTION  # what was typed is still in the form


def test_two_tabs_at_once_get_their_own_pictures(tiny_studio, open_studio, checkpoints):
    tabs = [open_studio(tiny_studio), open_studio(tiny_studio, same_window=True)]
    for seed, tab in enumerate(tabs):
        tab.set(candidates=12, seed=seed)
        tab.draw(CAPTION, wait=False)
    model = DALLE.load(checkpoints)
    for seed, tab in enumerate(tabs):
        tab.page.bring_to_front()
        tab.wait_until_done()
        assert tab.history.count() == 1
        best = model.generate(CAPTION, candidates=12, keep=1, seed=seed).images[0]
        assert np.array_equal(tab.download(), best)


def test_a_random_seed_is_new_each_time_and_can_be_used_again(tiny_page):
    tiny_page.set(candidates=1)
    tiny_page.draw(CAPTION)
    first = np.asarray(tiny_page.download())
    tiny_page.page.click("#seed-reuse")
    seed = tiny_page.value("seed")
    assert seed.isdigit()
    tiny_page.draw(CAPTION)
    assert np.array_equal(tiny_page.download(), first)
    tiny_page.page.click("#seed-dice")
    assert tiny_page.value("seed") not in ("", seed)


def test_wrong_values_are_named_at_the_form(tiny_page):
    tiny_page.caption.press("Enter")
    expect(tiny_page.error).to_contain_text("Type a caption first")
    tiny_page.caption.fill(CAPTION)
    for name, value, sentence in [
        ("top_p", "3", "at most 1"),
        ("candidates", "0", "at least 1"),
        ("top_k", "1.5", "whole number"),
        ("candidates", "100000", "at most"),
        ("temperature", "1e300", "at most 100"),
        ("guidance", "1e300", "at most 100"),
        ("top_k", "14", "at most 13"),
        ("top_p", "0", "not a probability"),  # refused by the server
        ("guidance", "3", "needs a transformer"),
        ("keep", "64", "impossible"),
    ]:
        tiny_page.set(**{name: value})
        tiny_page.page.click("#draw")
        expect(tiny_page.error).to_contain_text(sentence)
        expect(tiny_page.page.locator(f"[name={name}]")).to_be_focused()
        tiny_page.page.click("#settings-reset")
    assert tiny_page.history.count() == 0
    tiny_page.page.click("#draw")
    tiny_page.wait_until_done()
    expect(tiny_page.error).to_be_empty()


def test_a_caption_that_is_too_long_is_refused_in_a_sentence(tiny_page):
    tiny_page.caption.fill("circle square " * 60)
    tiny_page.caption.press("Enter")
    expect(tiny_page.error).to_contain_text("token")
    expect(tiny_page.caption).to_be_focused()
    assert tiny_page.history.count() == 0
    tiny_page.set(candidates=1)
    tiny_page.draw(CAPTION)  # the page still works


@pytest.mark.slow
def test_a_restarted_studio_is_named_with_its_cure_and_nothing_typed_is_lost(browser, checkpoints, open_studio):
    with StudioProcess(checkpoints) as studio:
        page = open_studio(studio)
        page.set(candidates=2, temperature=0.8)
        page.draw(CAPTION)
        page.caption.fill("three green triangles")
        studio.stop()
        page.page.click("#draw")
        expect(page.banner).to_contain_text("dalle studio")
        studio.start()  # with another token
        expect(page.banner).to_contain_text("another token", timeout=15_000)  # the page asks by itself
        page.page.goto(studio.link)  # in the same tab
        expect(page.banner).to_be_hidden()
        assert page.value("caption") == "three green triangles"
        assert page.value("temperature") == "0.8"
        page.open_picture()  # drawn before the restart
        page.edit("#vary-subtly")
        expect(page.pictures).to_have_count(2)
        other = open_studio(studio, same_window=True)  # the link in a new tab
        assert other.value("caption") == "three green triangles"
        assert other.value("temperature") == "0.8"
        assert "token" not in other.page.url


def test_a_page_without_its_link_says_where_the_token_is(tiny_studio, browser):
    context = browser.new_context()
    page = context.new_page()
    page.goto(tiny_studio.address)
    expect(page.locator("#banner")).to_contain_text("Open the link")
    context.close()


def test_without_javascript_the_page_says_what_to_do(tiny_studio, open_studio):
    page = open_studio(tiny_studio, java_script_enabled=False).page
    page.goto(tiny_studio.link)
    expect(page.locator("noscript p")).to_contain_text("dalle sample caption=")


def test_words_that_the_model_never_saw_are_named(drawings_studio, open_studio):
    studio = open_studio(drawings_studio)
    studio.set(candidates=1)
    studio.draw("a red zzyzx appel")
    expect(studio.status).to_contain_text("never seen “appel” (nearest known: apple, ape), “zzyzx”.")
    assert isinstance(studio.download(), Image.Image)


def test_many_drawings_in_the_queue_leave_connections_for_cancelling_them(drawings_studio, open_studio):
    studio = open_studio(drawings_studio)
    studio.set(candidates=64)
    count = 7  # a browser opens six connections to a server
    for number in range(count):
        studio.draw(f"a red apple {number}", wait=False)
    for number in reversed(range(count)):
        studio.history.nth(count - 1 - number).click()
        studio.page.keyboard.press("Escape")
        expect(studio.status).to_contain_text("Cancelled", timeout=60_000)
