"""Keyboard focus and announcements of the page, and what it leaves to fields of text."""

import re

import pytest
from playwright.sync_api import expect

CAPTION = "a red circle"


@pytest.fixture
def drawn(tiny_page):
    tiny_page.set(candidates=3)
    tiny_page.draw(CAPTION)
    return tiny_page


def test_arrow_keys_go_on_after_the_last_picture_was_reached_with_its_button(drawn):
    drawn.open_picture(0)
    page, place = drawn.page, drawn.page.locator("#viewer-place")
    page.locator("#next").focus()
    for _ in range(2):
        page.keyboard.press("Enter")
    expect(place).to_have_text("3 of 3")
    expect(page.locator("#previous")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(place).to_have_text("2 of 3")


def test_the_draw_button_keeps_the_focus_and_cancel_gives_it_to_the_pictures(drawn):
    page = drawn.page
    page.locator("#draw").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#history li:nth-child(2)")
    expect(page.locator("#draw")).to_be_focused()
    drawn.wait_until_done()
    drawn.set(candidates=64)
    drawn.draw(CAPTION, wait=False)
    page.locator("#cancel").focus()
    page.keyboard.press("Enter")
    page.locator("#cancel").wait_for(state="hidden")
    assert page.evaluate("() => document.activeElement.matches('.picture, #caption')")


def test_undoing_all_leaves_the_focus_at_the_mask(drawn):
    drawn.open_picture(0)
    drawn.page.click("#mask-start")
    drawn.page.keyboard.press("Space")
    drawn.page.locator("#undo").focus()
    drawn.page.keyboard.press("Enter")
    expect(drawn.page.locator("#undo")).to_be_disabled()
    expect(drawn.page.locator("#mask")).to_be_focused()


def test_what_the_page_finds_and_what_fails_is_announced(drawn):
    live = "[role=status], [role=alert], [aria-live]"
    for name in ("status", "error", "banner", "viewer-error", "viewer-place", "words-note", "nearest-note"):
        assert drawn.page.locator(f"#{name}").evaluate("(element, live) => element.matches(live)", live), name


def transfer(page, kind: str, event: str, target: str) -> bool:
    """Send a drop or paste of text, and of a picture beside it if `kind` is "both". True if the page prevented it."""
    return page.evaluate(
        """([kind, name, target]) => {
          const data = new DataTransfer();
          data.setData("text/plain", "a blue square");
          if (kind === "both") data.items.add(new File(["no picture"], "text.png", { type: "image/png" }));
          const options = { bubbles: true, cancelable: true };
          const event = name === "drop" ? new DragEvent(name, { ...options, dataTransfer: data })
            : new ClipboardEvent(name, { ...options, clipboardData: data });
          return !document.querySelector(target).dispatchEvent(event);
        }""",
        [kind, event, target],
    )


def test_text_is_left_to_the_field_that_it_is_dropped_on_or_pasted_into(tiny_page):
    assert transfer(tiny_page.page, "text", "drop", "#caption") is False
    transfer(tiny_page.page, "both", "paste", "#caption")  # as office programs copy text
    tiny_page.page.wait_for_timeout(200)
    assert tiny_page.error.inner_text() == ""
    transfer(tiny_page.page, "both", "paste", "#pictures")
    expect(tiny_page.error).to_contain_text("not an image")


def test_a_drawing_that_the_page_cannot_follow_does_not_stop_the_next(tiny_page):
    broken = "event: ranked\ndata: {}\n\n"
    events = re.compile("/api/jobs/.*/events")
    tiny_page.page.route(events, lambda route: route.fulfill(body=broken, content_type="text/event-stream"), times=1)
    tiny_page.draw(CAPTION, wait=False)
    expect(tiny_page.status).to_contain_text("Stopped.", timeout=90_000)
    tiny_page.draw(CAPTION)
    expect(tiny_page.status).to_contain_text("pictures in")
    (problem,) = tiny_page.problems
    assert "TypeError" in problem or "undefined" in problem
    tiny_page.problems.clear()
