"""Sizes below 1 are refused by every model, in the same words."""

from dataclasses import fields

import pytest

from dalle.models.clip.config import CLIPConfig
from dalle.models.dvae.model import DVAEConfig
from dalle.models.transformer.model import TransformerConfig

SIZES = [
    (config, each.name)
    for config in (DVAEConfig, TransformerConfig, CLIPConfig)
    for each in fields(config)
    if each.type is int
]


@pytest.mark.parametrize(("config", "name"), SIZES)
@pytest.mark.parametrize("size", [0, -4])
def test_a_size_below_one_is_named(config, name, size):
    with pytest.raises(ValueError, match=f"{name}={size} must be at least 1"):
        config(**{name: size})


def test_each_model_has_its_sizes_looked_at():
    assert {("width", DVAEConfig), ("heads", TransformerConfig), ("patch", CLIPConfig)} <= {
        (name, config) for config, name in SIZES
    }


def test_ids_may_be_zero():
    assert CLIPConfig(start_id=0).start_id == 0
