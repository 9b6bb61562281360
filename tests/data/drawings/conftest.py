"""A small folder of drawings, built from packages made by the tests: six subjects, without a network."""

from pathlib import Path

import pytest
from drawings_packages import Registry, package_files

from dalle.data.drawings.build import build

pytest.importorskip("resvg_py", reason="drawings are rendered with resvg-py, of the extra `data`")


@pytest.fixture
def registry() -> Registry:
    return Registry(package_files())


@pytest.fixture(scope="module")
def drawings(tmp_path_factory) -> Path:
    """Return a built folder."""
    folder = tmp_path_factory.mktemp("drawings")
    assert build(folder / "built", folder / "packages", Registry(package_files()).fetch) == []
    return folder / "built"
