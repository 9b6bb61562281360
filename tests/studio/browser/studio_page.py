"""The studio's page in a browser, with names for what tests do on it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:  # Playwright is optional
    from playwright.sync_api import Locator, Page

MAKE_FILE = """([bytes, name, type]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name, {type}));
  return transfer;
}"""


def png_bytes(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class StudioPage:
    """Page of a studio. Requests to other addresses, and errors in the console, are in `problems`."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))
        page.on("console", self._console)
        page.on("request", self._request)
        self.caption = page.locator("#caption")
        self.status = page.locator("#status")
        self.error = page.locator("#error")
        self.banner = page.locator("#banner")
        self.pictures = page.locator("#pictures .picture")
        self.finished = page.locator("#pictures .picture:not(.unfinished)")
        self.history = page.locator("#history .entry")
        self.viewer = page.locator("#viewer")

    def _console(self, message) -> None:
        # the browser itself logs each answer that is an error, and each lost connection
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.problems.append(f"console: {message.text}")

    def _request(self, request) -> None:
        if not request.url.startswith((self.address, "blob:", "data:")):
            self.problems.append(f"request to {request.url}")

    def open(self, link: str) -> StudioPage:
        self.page.goto(link)
        self.page.wait_for_selector("#examples button, #examples:empty", state="attached")
        self.page.wait_for_selector("#model:not(:empty)")
        return self

    def set(self, **settings: object) -> None:
        """Type values into fields of the settings."""
        if self.page.locator("#settings").get_attribute("open") is None:
            self.page.click("#settings > summary")
        for name, value in settings.items():
            self.page.fill(f"#settings [name={name}]", str(value))

    def value(self, name: str) -> str:
        return self.page.locator(f"#form [name={name}]").input_value()

    def draw(self, caption: str, wait: bool = True) -> None:
        """Type a caption and press Enter."""
        before = self.history.count()
        self.caption.fill(caption)
        self.caption.press("Enter")
        self.page.wait_for_selector(f"#history li:nth-child({before + 1})")
        if wait:
            self.wait_until_done()

    def wait_until_done(self) -> None:
        self.page.locator("#cancel").wait_for(state="hidden", timeout=90_000)
        self.page.wait_for_selector("#pictures .picture:not(.unfinished) img[src^='blob:']")

    def edit(self, button: str) -> None:
        """Press a button of the large view that draws again, and wait for the new pictures."""
        before = self.history.count()
        self.page.click(button)
        self.page.wait_for_selector(f"#history li:nth-child({before + 1})")
        self.wait_until_done()

    def download(self, picture: Locator | int = 0) -> Image.Image:
        """Open a picture and download it, with its text chunks."""
        self.open_picture(picture)
        with self.page.expect_download() as download:
            self.page.click("#download")
        self.page.keyboard.press("Escape")
        return Image.open(io.BytesIO(Path(download.value.path()).read_bytes()))

    def open_picture(self, picture: Locator | int = 0) -> None:
        (self.pictures.nth(picture) if isinstance(picture, int) else picture).click()
        self.page.wait_for_selector("#viewer[open]")

    def drop(self, data: bytes, name: str, kind: str = "image/png") -> None:
        """Drop a file on the page."""
        transfer = self.page.evaluate_handle(MAKE_FILE, [list(data), name, kind])
        self.page.dispatch_event("body", "drop", {"dataTransfer": transfer})

    def brush(self, *positions: tuple[float, float]) -> None:
        """Brush one stroke through positions, as shares of the mask's width and height."""
        box = self.page.locator("#mask").bounding_box()
        assert box is not None
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in positions]
        mouse = self.page.mouse
        mouse.move(*points[0])
        mouse.down()
        for point in points:
            mouse.move(*point, steps=3)
        mouse.up()

    def mask_pixels(self) -> int:
        """Count the canvas's painted pixels."""
        return self.page.evaluate(
            """() => {
              const canvas = document.getElementById("mask");
              const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
              let count = 0;
              for (let index = 3; index < data.length; index += 4) count += data[index] > 127;
              return count;
            }"""
        )


OpenStudio = Callable[..., StudioPage]
