from dataclasses import asdict

import pytest

from dalle.checkpoint import CheckpointError
from dalle.config_validation import flatten
from dalle.data.coco import CocoConfig
from dalle.stages import STAGES
from dalle.stages.dvae import DVAEStageConfig
from dalle.training.run import (
    MUTABLE,
    MUTABLE_MEMORY,
    MUTABLE_PATHS,
    ResumePoint,
    Run,
    RunConfigMismatchError,
    defaults_of,
    differences,
    rename_existing,
)
from dalle.training.state_files import save_state
from dalle.weights_files import WEIGHTS

OLD = {"stage": {"steps": 100, "model": {"width": 8}, "temperature": {"steps": 100}, "log_every": 5}, "seed": 0}


def changed(**changes):
    stage = {**OLD["stage"], **changes}
    return {**OLD, "stage": stage}


def test_changed_settings_are_listed_with_both_values():
    assert differences(OLD, changed(model={"width": 16, "depth": 2})) == [
        "stage.model.depth was absent, now 2",
        "stage.model.width was 8, now 16",
    ]
    assert differences(OLD, {**OLD, "dvae": "abc"}) == ["dvae was absent, now abc"]


def test_lists_and_tuples_compare_equal():
    assert differences(changed(betas=[0.9, 0.99]), changed(betas=(0.9, 0.99))) == []


def test_logging_settings_are_not_a_change():
    assert differences(OLD, changed(log_every=50, save_every=7)) == []


def test_settings_of_memory_and_paths_may_change_and_are_named(tmp_path):
    before = {**changed(accumulate=1, recompute=False), "data": {"path": "a", "opt_out": "", "image_size": 8}}
    save_state(tmp_path, 5, {}, {"identity": before})
    after = {**changed(accumulate=2, recompute=True), "data": {"path": "b", "opt_out": "list.txt", "image_size": 8}}
    changes = (
        *("data.opt_out list.txt instead of ''", "data.path b instead of a"),
        *("stage.accumulate 2 instead of 1", "stage.recompute true instead of false"),
    )
    assert Run(tmp_path, after).resume_point == ResumePoint(5, changes)
    with pytest.raises(RunConfigMismatchError, match="settings: stage.accumulate was 1, now 2. Choose"):
        _ = Run(tmp_path, after, accumulation_is_exact=False).resume_point
    with pytest.raises(RunConfigMismatchError, match="settings: data.image_size was 8, now 16. Choose"):
        _ = Run(tmp_path, {**after, "data": {**after["data"], "image_size": 16}}).resume_point


def test_settings_that_may_change_are_known_by_their_whole_name():
    former, present = (changed(model={"width": 8, "workers": number}) for number in (1, 2))
    assert differences(former, present) == ["stage.model.workers was 1, now 2"]
    existing = {f"stage.{name}" for name in flatten(asdict(DVAEStageConfig()))}
    existing |= {f"data.{name}" for name in asdict(CocoConfig())}
    assert existing >= MUTABLE | MUTABLE_MEMORY | MUTABLE_PATHS


def test_settings_that_a_saved_run_lacks_have_their_default():
    defaults = {"stage": {"model": {"depth": 2}, "ema": None}}
    assert differences(OLD, changed(model={"width": 8, "depth": 2}, ema=None), defaults) == []
    assert differences(OLD, changed(model={"width": 8, "depth": 3}, ema={"decay": 0.9}), defaults) == [
        "stage.ema.decay was absent, now 0.9",
        "stage.model.depth was 2, now 3",
    ]


@pytest.mark.parametrize("schema", STAGES.configs.values())
def test_defaults_are_those_of_the_stage(schema):
    assert defaults_of(schema) == asdict(schema())


def test_longer_run_is_no_change_and_extends_schedules():
    assert differences(OLD, changed(steps=200, temperature={"steps": 200})) == []
    assert differences(OLD, changed(steps=200)) == []
    assert differences(OLD, changed(steps=200, temperature={"steps": 150})) != []
    assert differences(OLD, changed(steps=200, model={"width": 200})) != []


def schedule(run, **length):
    return {"stage": {"steps": run, "rate": {"kind": "cosine", "delay": 0, **length}}}


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (schedule(100, steps=100), schedule(200, steps=200), []),
        (schedule(100, steps=60, delay=40), schedule(200, steps=160, delay=40), []),
        (schedule(100, steps=20, delay=80), schedule(200, steps=20, delay=180), []),
        (schedule(100, steps=60), schedule(200, steps=60), []),
        (schedule(100, steps=60), schedule(200, steps=200), ["stage.rate.steps was 60, now 200"]),
        (schedule(100, steps=100), schedule(200, steps=150), ["stage.rate.steps was 100, now 150"]),
        (schedule(100, steps=100), schedule(100, steps=60), ["stage.rate.steps was 100, now 60"]),
        (
            schedule(100, steps=100),
            schedule(100, steps=60, delay=40),
            ["stage.rate.delay was 0, now 40", "stage.rate.steps was 100, now 60"],
        ),
    ],
)
def test_only_schedules_that_end_with_the_run_follow_its_length(before, after, change):
    assert differences(before, after) == change


def test_new_folder_has_no_previous_run(tmp_path):
    assert Run(tmp_path / "new", OLD).resume_point == ResumePoint()
    (tmp_path / "empty").mkdir()
    assert Run(tmp_path / "empty", OLD).resume_point == ResumePoint()


def test_model_without_training_state_is_not_overwritten(tmp_path):
    (tmp_path / WEIGHTS).touch()
    with pytest.raises(CheckpointError, match="no training state to resume from"):
        _ = Run(tmp_path, OLD).resume_point


def test_archived_run_keeps_all_files(tmp_path):
    folder = tmp_path / "run"
    assert rename_existing(folder) is None
    for number in (1, 2):
        folder.mkdir()
        (folder / "file").write_text(str(number))
        assert rename_existing(folder) == tmp_path / f"run.{number}"
    assert not folder.exists()
    assert [(tmp_path / f"run.{number}" / "file").read_text() for number in (1, 2)] == ["1", "2"]
