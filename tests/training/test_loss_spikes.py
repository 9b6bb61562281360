"""Loss spikes and non-finite updates are reported with the keys of their batches."""

import json
import math

import pytest
import torch
from line_stage import LineConfig, LineStage, fit

from dalle.training.monitor import loss_spikes
from dalle.training.monitor.loss_spikes import LossSpikes, RunningLoss, Update


def reporter(folder, step=0, deviations=6.0):
    said = []
    return LossSpikes(deviations, folder, step, said.append), said


def feed(spikes, losses, first=1):
    for step, loss in enumerate(losses, first):
        spikes.add(Update(step, torch.tensor(loss), torch.tensor(1.0), [f"record-{step}-{row}" for row in range(6)]))


def noisy(count, seed=0):
    return (1 + 0.1 * torch.randn(count, generator=torch.Generator().manual_seed(seed))).tolist()


def read(folder):
    return [json.loads(line) for line in (folder / "spikes.jsonl").read_text().splitlines()]


def test_a_spike_is_reported_with_the_keys_of_its_batch(tmp_path):
    spikes, said = reporter(tmp_path)
    feed(spikes, [*noisy(150), 3.0, *noisy(49, seed=1)])
    spikes.report()
    (line,) = read(tmp_path)
    assert (line["step"], line["kind"], line["loss"]) == (151, "spike", 3.0)
    assert line["mean"] == pytest.approx(1, abs=0.05)
    assert line["deviation"] == pytest.approx(0.1, rel=0.2)
    assert line["keys"] == [f"record-151-{row}" for row in range(6)]
    (text,) = said
    assert text.startswith("update 151: loss 3 is ")
    assert "records record-151-0, record-151-1, record-151-2, record-151-3 and 2 more, all in" in text


def test_a_spike_is_printed_also_if_its_file_cannot_be_written(tmp_path, caplog):
    spikes, said = reporter(tmp_path)
    (tmp_path / "spikes.jsonl").mkdir()
    feed(spikes, [*noisy(150), 3.0])
    spikes.report()
    assert len(said) == 1
    assert caplog.messages[0].startswith("the loss spike of update 151 could not be written; training continues: ")


def test_ordinary_noise_and_slow_changes_are_no_spikes(tmp_path):
    spikes, said = reporter(tmp_path)
    feed(spikes, [loss + 5 * math.exp(-step / 50) for step, loss in enumerate(noisy(900))])
    spikes.report()
    assert said == []
    assert not (tmp_path / "spikes.jsonl").exists()


def test_a_lasting_rise_is_reported_only_until_the_mean_follows():
    running = RunningLoss(6.0)
    found = [running.is_spike(loss, 1.0) for loss in [*noisy(200), *(loss + 2 for loss in noisy(400, seed=1))]]
    assert found[200]
    assert not any(found[:200])
    assert not any(found[300:])


def test_no_loss_is_a_spike_with_0_deviations():
    running = RunningLoss(0.0)
    assert not any(running.is_spike(loss, 1.0) for loss in [*noisy(200), 1e9])
    assert running.is_spike(math.nan, 1.0)


def test_non_finite_updates_are_reported_also_before_the_first_hundred(tmp_path):
    spikes, said = reporter(tmp_path, deviations=0.0)
    feed(spikes, [1.0, math.nan, 1e9])
    spikes.report()
    (line,) = read(tmp_path)
    assert (line["step"], line["kind"], line["loss"]) == (2, "non-finite", None)
    assert len(said) == 1


def test_at_most_so_many_are_reported_also_over_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(loss_spikes, "MAX_REPORTS", 3)
    spikes, said = reporter(tmp_path)
    feed(spikes, [math.nan] * 5)
    spikes.report()
    assert [line["step"] for line in read(tmp_path)] == [1, 2, 3]
    assert [line.endswith("later ones are not reported") for line in said] == [False, False, True]
    resumed, _ = reporter(tmp_path, step=2)  # line 3 is about an update that is done again
    feed(resumed, [math.nan] * 5, first=3)
    resumed.report()
    assert [line["step"] for line in read(tmp_path)] == [1, 2, 3]


def test_a_run_reports_the_keys_of_a_batch_with_a_high_loss(tmp_path, capsys):
    class Keyed(tuple):
        keys: list[str]

    class Spoilt(LineStage):
        def batches(self, start):
            for batch in super().batches(start):
                keyed = Keyed(batch)
                keyed.keys = [f"picture-{batch[0]}"]
                yield keyed

        def loss(self, model, batch, step, generator):
            loss, metrics = super().loss(model, batch, step, generator)
            return loss + 1000 * (step == 110), metrics

    config = LineConfig(steps=120, accumulate=2, validate_every=0, preview_every=0, save_every=0)
    fit(tmp_path, config, Spoilt(config))
    (line,) = read(tmp_path)
    assert line["step"] == 111
    assert line["keys"] == ["picture-220", "picture-221"]
    assert "update 111: loss" in capsys.readouterr().err
