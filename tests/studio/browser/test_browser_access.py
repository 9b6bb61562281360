"""Accessibility of the page: WCAG AA by axe-core, keyboard alone, phones, reduced motion."""

from importlib.util import find_spec

import pytest
from playwright.sync_api import expect

CAPTION = "a small red circle above a large blue square"
STANDARDS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def violations(page) -> list[str]:
    """Run axe-core. Returns each violation with its elements; best-practice rules include landmarks and headings."""
    from axe_playwright_python.sync_playwright import Axe

    results = Axe().run(page, options={"runOnly": {"type": "tag", "values": STANDARDS}}).response
    assert results["passes"], "axe-core found nothing to check"
    return [
        f"{violation['id']}: {[node['html'] for node in violation['nodes']]}" for violation in results["violations"]
    ]


@pytest.mark.skipif(
    find_spec("axe_playwright_python") is None, reason="needs axe-playwright-python: pip install '.[dev]'"
)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_state_of_the_page_meets_wcag_aa(drawings_studio, open_studio, scheme):
    studio = open_studio(drawings_studio, color_scheme=scheme, reduced_motion="reduce")
    page = studio.page
    states = {"start": violations(page)}
    studio.set(candidates=1, seed=0)
    page.locator("#limits-box > summary").click()
    expect(page.locator("#limits li").first).to_be_visible()
    page.click("#draw")
    states["error"] = violations(page)
    studio.draw("a red apple")
    states["pictures"] = violations(page)
    studio.open_picture()
    page.click("#words > summary")
    page.locator("#words-list button").first.click()
    states["large view"] = violations(page)
    page.click("#mask-start")
    studio.brush((0.5, 0.5))
    states["mask"] = violations(page)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.locator("#open-help").click()
    states["help"] = violations(page)
    assert {state: found for state, found in states.items() if found} == {}


@pytest.mark.parametrize("width", [360, 768])
def test_narrow_screens_need_no_horizontal_scrolling(tiny_studio, open_studio, width):
    studio = open_studio(tiny_studio, viewport={"width": width, "height": 740}, has_touch=True)
    measure = "() => document.documentElement.scrollWidth"
    studio.set(candidates=3)
    assert studio.page.evaluate(measure) <= width
    studio.draw(CAPTION)
    assert studio.page.evaluate(measure) <= width
    studio.open_picture()
    studio.page.click("#mask-start")
    viewer = studio.viewer.bounding_box()
    assert viewer is not None and viewer["width"] <= width
    assert studio.viewer.evaluate("dialog => dialog.scrollWidth") <= width
    for name in ("mask", "brush", "undo", "inpaint"):  # the picture and its tools are on one screen
        expect(studio.page.locator(f"#{name}")).to_be_in_viewport(ratio=1)
    studio.page.keyboard.press("Escape")
    studio.page.click("#words > summary")
    studio.page.locator("#words-list button").last.click()
    for name in ("heat", "words-list"):  # so are the words and what they show
        expect(studio.page.locator(f"#{name}")).to_be_in_viewport(ratio=1)


def test_the_keyboard_alone_draws_opens_brushes_and_redraws(tiny_page):
    page, keyboard = tiny_page.page, tiny_page.page.keyboard
    focused = "() => document.activeElement.id || document.activeElement.className"

    def tab_to(name: str) -> None:
        for _ in range(60):
            keyboard.press("Tab")
            outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
            if page.evaluate("() => document.activeElement !== document.body"):
                assert outline != "none", page.evaluate("() => document.activeElement.outerHTML")
            if page.evaluate(focused) == name:
                return
        raise AssertionError(f"Tab never reaches {name}")

    expect(tiny_page.caption).to_be_focused()
    keyboard.type(CAPTION)
    keyboard.press("Enter")
    page.wait_for_selector("#history li")
    tiny_page.wait_until_done()
    tab_to("picture")
    keyboard.press("ArrowRight")
    expect(tiny_page.pictures.nth(1)).to_be_focused()
    keyboard.press("Enter")
    expect(tiny_page.viewer).to_be_visible()
    keyboard.press("m")
    expect(page.locator("#mask")).to_be_focused()
    keyboard.press("Space")
    dot = tiny_page.mask_pixels()
    keyboard.press("Shift+ArrowRight")
    assert tiny_page.mask_pixels() > dot > 0
    keyboard.press("Control+z")
    keyboard.press("Control+y")
    tab_to("inpaint")
    keyboard.press("Enter")
    page.wait_for_selector("#history li:nth-child(2)")
    tiny_page.wait_until_done()
    expect(tiny_page.history.first).to_contain_text("inpaint")
    page.locator("#open-help").focus()
    keyboard.press("h")
    expect(tiny_page.history.first).to_be_focused()
    keyboard.press("ArrowDown")
    keyboard.press("/")
    expect(tiny_page.caption).to_be_focused()
    keyboard.type("/?s")  # letters in a field are text
    expect(page.locator("#help")).to_be_hidden()


def test_shortcuts_of_a_single_letter_can_be_switched_off(tiny_page):
    page = tiny_page.page
    page.locator("#open-help").focus()
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.uncheck("#single-keys")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_hidden()


def test_reduced_motion_stops_all_animations(tiny_studio, open_studio):
    studio = open_studio(tiny_studio, reduced_motion="reduce")
    durations = "() => [...document.querySelectorAll('*')].map((each) => getComputedStyle(each).transitionDuration)"
    studio.set(candidates=2)
    studio.draw(CAPTION)
    assert set(studio.page.evaluate(durations)) == {"0s"}


def test_progress_is_announced_without_flooding_a_screen_reader(tiny_page):
    page = tiny_page.page
    page.evaluate(
        """() => {
          window.said = [];
          const status = document.getElementById("status");
          new MutationObserver(() => window.said.push(status.textContent)).observe(status, { childList: true });
        }"""
    )
    tiny_page.set(candidates=4)
    tiny_page.draw(CAPTION)
    said = page.evaluate("() => window.said")
    assert "best first" in said[-1]
    assert len(said) == len(set(said)) <= 4 + 4  # each sentence once: waiting, drawing, each picture, done
