"""Fixtures: a headless Chromium, studios in processes of their own, and their pages."""

import shutil
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from studio_page import OpenStudio, StudioPage
from studio_process import StudioProcess

EXECUTABLES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# no sandbox: tests also run as root in containers. The others: a test browser looks nothing up by itself
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a browser."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """Headless Chromium: the system's, or the one that Playwright installed."""
    for package in ("playwright", "fastapi", "uvicorn"):
        if find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install '.[studio,dev]'")
    from playwright.sync_api import Error, sync_playwright

    executable = next(filter(None, map(shutil.which, EXECUTABLES)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        except Error as error:
            pytest.skip(f"no browser starts: apt-get install chromium ({str(error).splitlines()[0]})")
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def tiny_studio(browser, checkpoints) -> Iterator[StudioProcess]:
    """Studio of a tiny model with random weights."""
    with StudioProcess(checkpoints) as studio:
        yield studio


@pytest.fixture(scope="session")
def drawings_studio(browser) -> Iterator[StudioProcess]:
    """Studio of the bundled model."""
    with StudioProcess("drawings") as studio:
        yield studio


@pytest.fixture
def open_studio(browser) -> Iterator[OpenStudio]:
    """Function that opens a studio in a new tab of a window; options as for Playwright's `new_context`.

    At the end no tab may have called another address, or have an error in its console.
    """
    contexts, pages = [], []

    def open_page(studio: StudioProcess, same_window: bool = False, **options) -> StudioPage:
        if not (same_window and contexts):
            contexts.append(browser.new_context(**options))
            contexts[-1].set_default_timeout(30_000)
        page = StudioPage(contexts[-1].new_page(), studio.address)
        pages.append(page)
        return page.open(studio.link) if options.get("java_script_enabled", True) else page

    yield open_page
    for context in contexts:
        context.close()
    assert [problem for page in pages for problem in page.problems] == []


@pytest.fixture
def tiny_page(tiny_studio, open_studio) -> StudioPage:
    """Page of the tiny model's studio in a new window."""
    return open_studio(tiny_studio)
