"""Validation of model sizes: all models reject sizes below 1 with the same message."""

from dataclasses import fields

import pytest

from dalle.models.clip.config import CLIPConfig
from dalle.models.dvae.model import DVAEConfig
from dalle.models.transformer.config import TransformerConfig

SIZES = [
    (config, field.name)
    for config in (DVAEConfig, TransformerConfig, CLIPConfig)
    for field in fields(config)
    if field.type is int
]


@pytest.mark.parametrize(("config", "name"), SIZES)
@pytest.mark.parametrize("size", [0, -4])
def test_size_below_one_raises(config, name, size):
    with pytest.raises(ValueError, match=f"{name}={size} must be at least 1"):
        config(**{name: size})


def test_every_model_validates_its_sizes():
    assert {("width", DVAEConfig), ("heads", TransformerConfig), ("patch", CLIPConfig)} <= {
        (name, config) for config, name in SIZES
    }


def test_ids_may_be_zero():
    assert CLIPConfig(start_id=0).start_id == 0
