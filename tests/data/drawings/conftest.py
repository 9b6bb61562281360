"""A small folder of drawings, built from packages made by the tests: six subjects, without a network. Its splits."""

from pathlib import Path

import pytest
from drawings_packages import Registry, package_files

from dalle.data.drawings.build import build
from dalle.data.drawings.config import DrawingsConfig, MixConfig
from dalle.data.drawings.source import DrawingsSource

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


@pytest.fixture
def config(drawings) -> DrawingsConfig:
    return DrawingsConfig(
        path=str(drawings), image_size=32, skin_tones=1.0, validation_share=0.3, mix=MixConfig(2.0, 2.0, 2.0)
    )


@pytest.fixture
def train(config, monkeypatch) -> DrawingsSource:
    """Return the training split with nothing held out: the whole set is small."""
    monkeypatch.setattr("dalle.data.drawings.records.held_out_concept", lambda concept, share: False)
    monkeypatch.setattr("dalle.data.drawings.records.held_out_style", lambda *_: False)
    monkeypatch.setattr("dalle.data.drawings.records.held_out_colour", lambda *_: False)
    return DrawingsSource(config, "train")
