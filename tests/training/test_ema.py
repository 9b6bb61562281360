import weakref

import pytest
import torch
from torch import nn

from dalle import distributed
from dalle.training.ema import EMA, EMAConfig, copy_without_weights


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


@pytest.mark.parametrize("is_main_process", [True, False])
def test_a_sharded_average_is_gathered_for_the_rank_that_saves_only(monkeypatch, is_main_process):
    gathered: list[weakref.ref] = []

    def noted(tensor):
        assert is_main_process or not any(reference() is not None for reference in gathered), (
            "two whole weights at a time"
        )
        whole = tensor.clone()
        gathered.append(weakref.ref(whole))
        return whole

    monkeypatch.setattr("dalle.training.ema.gather", noted)
    monkeypatch.setattr(distributed, "is_main_process", lambda: is_main_process)
    source = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    average = EMA(source, EMAConfig(decay=0.5), copy_without_weights(source))
    model = average.main_process_model()
    assert len(gathered) == 4
    if not is_main_process:
        assert model is None
    else:
        assert all(model.state_dict()[name].equal(weight) for name, weight in source.state_dict().items())


def test_a_gathered_copy_does_not_change_with_the_averages(monkeypatch):
    """A gathered shard of a group of one rank is the shard itself."""
    monkeypatch.setattr("dalle.training.ema.gather", lambda tensor: tensor)
    source = nn.Linear(2, 3)
    average = EMA(source, EMAConfig(decay=0.5, every=1), copy_without_weights(source))
    model = average.main_process_model(copied=True)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    source.weight.data.add_(1)
    average.update(1)
    assert all(weight.equal(before[name]) for name, weight in model.state_dict().items())
    assert not average.main_process_model().weight.equal(model.weight)


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
