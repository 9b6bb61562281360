"""Command lines compose with the real configs, and mistakes in them are reported in a sentence."""

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from hydra.errors import HydraException

from dalle.cli import config
from dalle.cli.choices import options
from dalle.cli.config import TrainConfig, compose, verb
from dalle.stages import STAGES
from dalle.training.signals import Interrupted

PRESETS, DATA, EXPERIMENTS = (options(group) for group in ("preset", "data", "experiment"))
NEEDED = {"folder": ["data.path=pictures"]}  # what has no default


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("stage", [*STAGES, "all"])
def test_every_stage_composes_with_every_preset(stage, preset):
    composed = compose("train", [f"stage={stage}", f"preset={preset}"])
    assert isinstance(composed, TrainConfig)
    stages = composed.stage if stage == "all" else {stage: composed.stage}
    for name, settings in stages.items():
        assert type(settings) is STAGES[name].config
        settings.micro_batch_size(1)


@pytest.mark.parametrize("data", DATA)
def test_every_data_set_composes(data):
    composed = compose("train", [f"data={data}", *NEEDED.get(data, [])])
    assert composed.data.name == data


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes(experiment):
    assert isinstance(compose("train", [f"experiment={experiment}"]), TrainConfig)


def test_overrides_reach_frozen_settings_and_the_defaults_stay_the_papers():
    composed = compose("train", ["stage.model.width=64", "stage.optimizer.learning_rate.end=3e-5"])
    assert composed.stage.model.width == 64
    assert composed.stage.optimizer.learning_rate.end == 3e-5
    defaults, composed = (asdict(each) for each in (STAGES["dvae"].config(), compose("train").stage))
    assert json.dumps(defaults) == json.dumps(composed)  # but for tuples, which Hydra makes lists
    everything = compose("train", ["stage=all", "stage.clip.model.patch=8"])
    assert everything.stage["clip"].model.patch == 8


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("stage.modle.width=8", "there is no setting stage.modle.width; did you mean stage.model.width?"),
        ("learning_rate=1", "there is no setting learning_rate; did you mean stage.optimizer.learning_rate?"),
        ("presett=tiny", "there is no setting presett; did you mean preset?"),
        ("+stage.stepz=1", "there is no setting stage.stepz; did you mean stage.steps?"),
        ("zzzzzz=1", "there is no setting zzzzzz\n"),
        ("scale=laptop", "there is no setting scale; it is called size now"),
        (
            "preset=smal",
            "there is no preset=smal; choose one of base, paper, paper-1b, paper-3b, paper-6b, small, tiny",
        ),
        ("size=lapto", "there is no size=lapto; choose one of base, laptop, paper, small"),
        ("preset.dvae.steps=3", "there is no setting preset.dvae.steps; did you mean stage."),
        ("stage=dvea", "there is no stage=dvea; choose one of all, clip, dvae, transformer"),
        ("stage.steps=abc", "stage.steps=abc: Value 'abc' of type 'str' could not be converted to Integer"),
        ("stage.optimizer=adam", "stage.optimizer is made of parts, .learning_rate, .warmup_steps"),
        (
            "run=a, b",
            "cannot read run=a, b: a value with commas or brackets needs two pairs of quotes, as 'run=\"a, b\"'",
        ),
        ("stage.steps", "cannot read stage.steps: settings are given as stage.steps=value"),
        ("stage.kl_weight.kind=linera", "schedule kind 'linera' is unknown; choose one of constant, linear"),
        ("wandb.mode=off", "wandb.mode=off is unknown; choose offline, online or disabled"),
    ],
)
def test_mistakes_are_named_with_the_nearest_right_name_and_nothing_starts(command, argument, sentence):
    calls, status, told = command(argument)
    assert (calls, status) == ([], 2)
    assert sentence in told
    assert told.count("\n") <= 3


def test_words_without_quotes_are_told_to_have_some(command):
    calls, status, told = command("caption=a", "money", "bag", name="sample")
    assert (calls, status) == ([], 2)
    assert "cannot read money: settings are given as money=value; or quote it with caption=a" in told


@pytest.mark.parametrize(
    "caption",
    [
        "a red circle, a blue square",
        "it's {odd} [text] (here): a=b",
        'a "red" circle',
        "back\\slash, \\",
        'both \\" of them',
        "${dvae} and $5",
        "null",
        "12",
    ],
)
def test_a_caption_is_read_as_it_is_typed(command, caption):
    (composed,), status, _ = command(f"caption={caption}", "seed=3", name="sample")
    assert status == 0
    assert (composed.caption, composed.seed) == (caption, 3)


def test_a_caption_in_hydras_quotes_and_sweeps_over_captions_are_left_to_hydra(command):
    (composed,), _, _ = command("caption='a red circle, a blue square'", name="sample")
    assert composed.caption == "a red circle, a blue square"
    calls, _, _ = command("-m", "caption=red,blue", name="sample")
    assert [each.caption for each in calls] == ["red", "blue"]


def test_with_all_stages_a_setting_is_found_in_each(command):
    _, _, told = command("stage=all", "stage.batchsize=8")
    assert "did you mean stage.dvae.batch_size or stage.clip.batch_size" in told


def test_a_verb_gets_its_options_and_leaves_nothing_of_hydras(command, tmp_path):
    (composed,), status, _ = command("stage=clip", "run=mine", "seed=3")
    assert status == 0
    assert (composed.run, composed.seed, composed.stage.name) == ("mine", 3, "clip")
    assert list(tmp_path.iterdir()) == []
    assert Path.cwd() == tmp_path


def raising(error):
    def act(_):
        raise error

    return act


def test_what_a_user_can_mend_is_a_sentence_and_status_2(command):
    for error in (ValueError("no such dVAE"), OSError(28, "No space left on device")):
        _, status, told = command(act=raising(error))
        assert status == 2
        assert told in ("no such dVAE\n", "[Errno 28] No space left on device\n")


def test_mistakes_of_our_own_keep_their_traces(command, monkeypatch):
    with pytest.raises(TypeError, match="a defect"):
        command(act=raising(TypeError("a defect")))


def test_the_trace_is_shown_on_demand(monkeypatch):
    monkeypatch.setenv(config.FULL_ERROR, "1")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(ValueError, match="no such dVAE"):
        verb("train")(raising(ValueError("no such dVAE")))()
    monkeypatch.setattr(sys, "argv", ["train.py", "stage.stepz=1"])
    with pytest.raises(HydraException):
        verb("train")(lambda _: None)()


def test_being_asked_to_stop_ends_as_shells_have_it(command):
    _, status, told = command(act=raising(Interrupted("stopped at step 5", signal.SIGTERM)))
    assert (status, told) == (143, "stopped at step 5\n")
    assert command(act=raising(KeyboardInterrupt()))[1:] == (130, "stopped\n")


@pytest.mark.parametrize("arguments", [["-m", "run=kl", "seed=1,2"], ["run=kl", "seed=1,2", "-m"]])
def test_the_jobs_of_a_sweep_have_names_of_their_own(command, arguments):
    names = []
    calls, status, _ = command(*arguments, act=lambda composed: names.append(config.run_name(composed.run)))
    assert status == 0
    assert names == ["kl-seed_1", "kl-seed_2"]
    assert [composed.seed for composed in calls] == [1, 2]


def test_outside_a_sweep_a_run_keeps_its_name(command):
    names = []
    command("run=kl", "seed=1", act=lambda composed: names.append(config.run_name(composed.run)))
    assert names == ["kl"]


def test_long_names_of_a_sweep_are_cut_and_stay_apart(command):
    names = []
    long = "x" * 150
    command("-m", f"dvae={long}a,{long}b", act=lambda composed: names.append(config.run_name(composed.run)))
    assert len(set(names)) == 2
    assert all(len(name) <= 120 for name in names)


def test_one_failing_job_does_not_stop_a_sweep_but_is_told(command):
    def act(composed):
        if composed.seed == 1:
            raise ValueError("seed 1 fails")

    calls, status, told = command("-m", "seed=1,2", act=act)
    assert len(calls) == 2
    assert status == 2
    assert "seed 1 fails\n" in told
    assert "Traceback" not in told


def test_a_stopped_job_stops_the_sweep(command):
    calls, status, _ = command("-m", "seed=1,2", act=raising(Interrupted("stopped", signal.SIGTERM)))
    assert (len(calls), status) == (1, 143)
