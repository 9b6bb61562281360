"""Fixtures: a small CLIPModel of transformers, and the folder that it publishes."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def published_clip():
    """Return a `transformers.CLIPModel` with random weights."""
    from reference_clips import huggingface_model  # not above: other tests here do not need transformers

    return huggingface_model()


@pytest.fixture(scope="module")
def published_folder(published_clip, tmp_path_factory) -> Path:
    """Return a folder with the model and its tokenizer."""
    from reference_clips import saved

    return saved(published_clip, tmp_path_factory.mktemp("published"))


@pytest.fixture
def folder(published_folder, tmp_path) -> Path:
    """Return a copy of the published folder that a test may change."""
    for path in published_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path
