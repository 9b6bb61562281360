"""Take the two pictures of the studio's page in docs/studio.md: python docs/studio_screenshots.py

Needs Chromium, and pip install '.[studio,dev]'. Draws with the bundled model; nothing is selected by hand.
"""

import os
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

LIGHT, DARK = Path(__file__).with_name("studio-light.png"), Path(__file__).with_name("studio-dark-phone.png")
CAPTION = "a red apple, outlined cartoon"
TIMEOUT = 900_000  # milliseconds of a drawing, on a slow computer


def draw(page: Page, link: str) -> None:
    """Open the studio and draw."""
    page.goto(link)
    page.locator("#examples button").first.wait_for()
    page.click("#settings > summary")
    page.fill("[name=candidates]", "8")
    page.fill("[name=seed]", "0")
    page.click("#settings > summary")
    page.fill("#caption", CAPTION)
    page.keyboard.press("Enter")
    page.locator("#status", has_text="best first").wait_for(timeout=TIMEOUT)
    page.wait_for_function("() => [...document.querySelectorAll('.picture img')].every((image) => image.complete)")


def brush_mask(page: Page) -> None:
    """Open the best picture and brush a mask."""
    page.locator(".picture").first.click()
    page.click("#mask-start")
    box = page.locator("#mask").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 4
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + box["width"] / 4, y + box["height"] / 8, steps=8)
    page.mouse.up()


def photograph(page: Page, path: Path) -> None:
    """Save a picture of the page as it is."""
    page.screenshot(path=path)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(256)  # a third of the bytes, no visible difference
    small.save(path, optimize=True)


def main() -> None:
    command = [sys.executable, "-m", "dalle", "studio", "port=0"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "DALLE_STUDIO_TOKEN": secrets.token_urlsafe(32)}
    with (
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as studio,
        sync_playwright() as p,
    ):
        assert studio.stdout is not None
        link = next(found.group() for line in studio.stdout if (found := re.search(r"http\S+#token=\S+", line)))
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 860}, color_scheme="light")
            draw(page, link)
            photograph(page, LIGHT)
            page.set_viewport_size({"width": 390, "height": 844})
            page.emulate_media(color_scheme="dark")
            brush_mask(page)
            photograph(page, DARK)
        finally:
            browser.close()
            studio.terminate()


if __name__ == "__main__":
    main()
