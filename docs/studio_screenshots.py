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
from playwright.sync_api import Browser, sync_playwright

LIGHT, DARK = Path(__file__).with_name("studio-light.png"), Path(__file__).with_name("studio-dark-phone.png")
CAPTION = "a red apple, outlined cartoon"
SIZES = {LIGHT: {"width": 1280, "height": 860}, DARK: {"width": 390, "height": 844}}
TIMEOUT = 180_000  # milliseconds of a drawing, on a slow computer


def photograph(browser: Browser, link: str, path: Path) -> None:
    """Draw on the page, and save a picture of it: on the phone with a mask that is being brushed."""
    scheme = "light" if path == LIGHT else "dark"
    page = browser.new_page(viewport=SIZES[path], color_scheme=scheme, has_touch=path == DARK)
    page.goto(link)
    page.locator("#examples button").first.wait_for()
    page.click("#settings > summary")
    page.fill("[name=candidates]", "8")
    page.fill("[name=seed]", "0")
    page.click("#settings > summary")
    page.fill("#caption", CAPTION)
    page.keyboard.press("Enter")
    page.locator("#status", has_text="best first").wait_for(timeout=TIMEOUT)
    if path == DARK:
        page.locator(".picture").first.click()
        page.click("#mask-start")
        box = page.locator("#mask").bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 4
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + box["width"] / 4, y + box["height"] / 8, steps=8)
        page.mouse.up()
    page.screenshot(path=path)
    page.close()
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
            for path in SIZES:
                photograph(browser, link, path)
        finally:
            browser.close()
            studio.terminate()


if __name__ == "__main__":
    main()
