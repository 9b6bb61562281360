import pytest
import torch
from torch import nn

from dalle.training.ema import EMA, EMAConfig


def test_ema_follows_recurrence():
    source = nn.Linear(1, 1, bias=False)
    source.weight.data.fill_(0.0)
    average = EMA(source, EMAConfig(decay=0.75, warmup=False))
    source.weight.data.fill_(1.0)
    for step in (1, 2):
        average.update(step)
    assert average.model.weight.item() == pytest.approx(1 - 0.75**2)
    assert source.weight.item() == 1.0
    assert not average.model.training
    assert not average.model.weight.requires_grad


def test_ema_starts_at_start_step():
    source = nn.Linear(1, 1)
    average = EMA(source, EMAConfig(decay=0.5, every=25))
    before = average.model.weight.clone()
    source.weight.data.add_(1)
    average.update(24)
    assert torch.equal(average.model.weight, before)
    average.update(25)
    assert not torch.equal(average.model.weight, before)


def test_ema_warmup_uses_smaller_decay():
    config = EMAConfig(decay=0.999)
    assert config.decay_at(1) == pytest.approx(2 / 11)
    assert config.decay_at(1_000_000) == 0.999
    assert EMAConfig(decay=0.99, every=25).decay_at(50) == pytest.approx(3 / 12)


def test_ema_with_zero_decay_equals_weights():
    source = nn.BatchNorm1d(3)
    average = EMA(source, EMAConfig(decay=0.0))
    source.weight.data.uniform_()
    source.running_mean.uniform_()
    average.update(1)
    assert torch.equal(average.model.weight, source.weight)
    assert torch.equal(average.model.running_mean, source.running_mean)


def test_invalid_ema_settings_raise():
    for wrong in ({"decay": 1.0}, {"decay": -0.1}, {"every": 0}):
        with pytest.raises(ValueError, match="ema"):
            EMAConfig(**wrong)
