"""The list of data sets: each has its config, its source, its YAML."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from dalle.data import DATA_SETS, open_source
from dalle.data.blocks import BlocksConfig, BlocksSource

CONFIG_FILES = Path(__file__).parents[2] / "configs" / "data"


def test_every_data_set_has_a_config_under_its_name():
    assert DATA_SETS.configs.keys() == DATA_SETS.keys()
    for name, config in DATA_SETS.configs.items():
        assert is_dataclass(config)
        defaults = {field.name: field.default for field in fields(config)}
        assert defaults["name"] == name and "image_size" in defaults


def test_every_data_set_has_a_yaml_that_explains_it():
    for name in DATA_SETS:
        text = (CONFIG_FILES / f"{name}.yaml").read_text(encoding="utf-8")
        comment = text[: text.index("defaults:")]
        assert comment.startswith("# ") and "Splits:" in comment and "Attribution:" in comment
        assert f"{name}_schema" in text


def test_the_yaml_shows_the_attribution_that_the_code_gives():
    noted = {name: entry.note for name, entry in DATA_SETS.items() if entry.note}
    assert "emoji" in noted
    for name, attribution in noted.items():
        assert attribution in (CONFIG_FILES / f"{name}.yaml").read_text(encoding="utf-8")


def test_a_source_is_opened_by_its_configs_name():
    source = open_source(BlocksConfig(image_size=32), "val")
    assert isinstance(source, BlocksSource) and source.image_size == 32


def test_an_unknown_name_is_answered_with_those_that_exist():
    with pytest.raises(ValueError, match="no data set 'imagenet'; choose one of blocks, emoji, folder"):
        open_source(SimpleNamespace(name="imagenet"), "train")
