"""Registry of data sets: each has a config, a source, and an attribution."""

import inspect
from dataclasses import fields, is_dataclass
from types import SimpleNamespace

import pytest

from dalle.data import DATA_SETS, attribution, config_from_dict, open_source
from dalle.data.blocks import BlocksConfig, BlocksSource


def test_every_data_set_has_a_config_of_its_name():
    assert DATA_SETS.configs.keys() == DATA_SETS.keys()
    for name, config in DATA_SETS.configs.items():
        assert is_dataclass(config)
        defaults = {field.name: field.default for field in fields(config)}
        assert defaults["name"] == name and "image_size" in defaults


def test_every_data_set_has_split_and_attribution():
    for config in DATA_SETS.configs.values():
        explanation = inspect.getdoc(config)
        assert "\nSplits:" in explanation and "\nAttribution:" in explanation


def test_docs_show_the_attribution():
    noted = {name: entry for name, entry in DATA_SETS.items() if entry.note}
    assert "emoji" in noted
    for entry in noted.values():
        assert entry.note in inspect.getdoc(entry.config).replace("\n", " ")


def test_source_is_opened_by_config_name():
    source = open_source(BlocksConfig(image_size=32), "val")
    assert isinstance(source, BlocksSource) and source.image_size == 32


@pytest.mark.parametrize("name", ["blocks", "emoji", "folder", "coco", "webdataset"])
@pytest.mark.parametrize("size", [0, -64])
def test_images_without_pixels_are_refused(name, size):
    with pytest.raises(ValueError, match=f"image_size={size}"):
        DATA_SETS.configs[name](image_size=size)


def test_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match="no data set 'imagenet'; choose one of blocks, emoji, drawings, folder"):
        open_source(SimpleNamespace(name="imagenet"), "train")


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ({"name": "blocks", "image_size": 32, "weather": "rain", "wind": 3}, "data=blocks .* data.weather, data.wind "),
        ({"name": "folder", "filters": {"min_words": 2, "rhyme": True}}, "data=folder .* data.filters.rhyme "),
        ({"name": "drawings", "mix": {"sounds": 1.0}}, "data=drawings .* data.mix.sounds "),
    ],
)
def test_settings_of_a_newer_version_are_named(written, names):
    with pytest.raises(ValueError, match=f"{names}in this version: the checkpoint may be of a newer version"):
        config_from_dict(written)


@pytest.mark.parametrize("name", [["blocks"], {"blocks": 1}, None, 3])
def test_a_name_of_another_type_is_an_unknown_data_set(name):
    with pytest.raises(ValueError, match="there is no data set"):
        config_from_dict({"name": name})
    assert attribution(name) == ""
