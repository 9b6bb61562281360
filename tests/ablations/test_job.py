"""job.json: identity and status of a sweep's job."""

import json

import pytest
from sweep_files import job

from dalle.signals import Interrupted
from dalle.training.job import Job, record_status
from dalle.training.run import RunConfigMismatchError


def status(folder):
    written = json.loads((folder / "job.json").read_text())
    return written["status"], written["error"]


def test_status_is_running_then_finished(tmp_path):
    with record_status(job("salt", 3), tmp_path / "run"):
        assert status(tmp_path / "run") == ("running", "")
    assert status(tmp_path / "run") == ("finished", "")
    assert Job.from_dict(json.loads((tmp_path / "run" / "job.json").read_text())) == job("salt", 3)


@pytest.mark.parametrize("error", [ValueError("no such dVAE"), RuntimeError("a defect")])
def test_failed_job_records_the_error(tmp_path, error):
    with pytest.raises(type(error)), record_status(job("salt", 3), tmp_path):
        raise error
    assert status(tmp_path) == ("failed", f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("stop", [Interrupted("stopped", 15), KeyboardInterrupt()])
def test_interrupted_job_is_not_failed(tmp_path, stop):
    with pytest.raises(type(stop)), record_status(job("salt", 3), tmp_path):
        raise stop
    assert status(tmp_path) == ("running", "")


def test_finished_job_stays_finished_if_another_run_is_refused(tmp_path):
    with record_status(job("salt", 3), tmp_path):
        pass
    with pytest.raises(RunConfigMismatchError), record_status(job("salt", 4), tmp_path):
        raise RunConfigMismatchError("seed was 3, now 4")
    assert status(tmp_path) == ("finished", "")
    assert Job.from_dict(json.loads((tmp_path / "job.json").read_text())).seed == 3


def test_folder_name_has_values_and_size(tmp_path):
    values = {"stage.model.patterns": ["row", "column"], "stage.temperature.end": 0.0625, "stage.gain": None}
    name = "model.patterns_row_column-temperature.end_0.0625-gain_none-seed_2"
    assert Job("order", "laptop", values, 2).folder(tmp_path) == tmp_path / "ablation" / "order" / name
    assert Job("order", "small", values, 2).folder(tmp_path) == tmp_path / "ablation" / "order-small" / name
