"""The list of data sets: each has its config, its source, and says what it is."""

import inspect
from dataclasses import fields, is_dataclass
from types import SimpleNamespace

import pytest

from dalle.data import DATA_SETS, open_source
from dalle.data.blocks import BlocksConfig, BlocksSource


def test_every_data_set_has_a_config_under_its_name():
    assert DATA_SETS.configs.keys() == DATA_SETS.keys()
    for name, config in DATA_SETS.configs.items():
        assert is_dataclass(config)
        defaults = {field.name: field.default for field in fields(config)}
        assert defaults["name"] == name and "image_size" in defaults


def test_every_data_set_says_how_it_is_split_and_whom_to_name():
    for config in DATA_SETS.configs.values():
        explanation = inspect.getdoc(config)
        assert "\nSplits:" in explanation and "\nAttribution:" in explanation


def test_the_explanation_shows_the_attribution_that_the_code_gives():
    noted = {name: entry for name, entry in DATA_SETS.items() if entry.note}
    assert "emoji" in noted
    for entry in noted.values():
        assert entry.note in inspect.getdoc(entry.config).replace("\n", " ")


def test_a_source_is_opened_by_its_configs_name():
    source = open_source(BlocksConfig(image_size=32), "val")
    assert isinstance(source, BlocksSource) and source.image_size == 32


def test_an_unknown_name_is_answered_with_those_that_exist():
    with pytest.raises(ValueError, match="no data set 'imagenet'; choose one of blocks, emoji, drawings, folder"):
        open_source(SimpleNamespace(name="imagenet"), "train")
