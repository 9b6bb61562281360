"""Command lines compose with the configs in configs/; errors in them are reported in one sentence."""

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from hydra.errors import HydraException

from dalle.checkpoint import CheckpointError
from dalle.cli import config
from dalle.cli.config import compose
from dalle.cli.config_groups import options
from dalle.cli.train_config import TrainConfig
from dalle.signals import Interrupted
from dalle.stages import STAGES
from dalle.training.loop import DivergenceError

PRESETS, DATA, EXPERIMENTS = (options(group) for group in ("preset", "data", "experiment"))
ROOT = Path(__file__).parents[1]
REQUIRED = {"folder": ["data.path=pictures"]}  # settings without a default


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
    composed = compose("train", [f"data={data}", *REQUIRED.get(data, [])])
    assert composed.data.name == data


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes(experiment):
    assert isinstance(compose("train", [f"experiment={experiment}"]), TrainConfig)


def test_overrides_change_settings_and_defaults_are_the_papers():
    composed = compose("train", ["stage.model.width=64", "stage.optimizer.learning_rate.end=3e-5"])
    assert composed.stage.model.width == 64
    assert composed.stage.optimizer.learning_rate.end == 3e-5
    defaults, composed = (asdict(stage) for stage in (STAGES["dvae"].config(), compose("train").stage))
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
        (
            "data.filters.min_words=2",
            "there is no setting data.filters.min_words for this data set: filters= is for data=",
        ),
        ("filters=paper", "there is no setting data.filters for this data set: filters= is for data=folder, coco and"),
        ("zzzzzz=1", "there is no setting zzzzzz\n"),
        (
            "preset=smal",
            "there is no preset=smal; choose one of base, drawings, paper, paper-1b, paper-3b, paper-6b, small, tiny",
        ),
        ("size=lapto", "there is no size=lapto; choose one of base, gpu, laptop, overnight, paper, small"),
        ("preset.dvae.steps=3", "there is no setting preset.dvae.steps; did you mean stage."),
        ("stage=dvea", "there is no stage=dvea; choose one of all, clip, decoder, dvae, transformer"),
        ("stage.steps=abc", "stage.steps=abc: Value 'abc' of type 'str' could not be converted to Integer"),
        ("stage.optimizer=adam", "stage.optimizer is a group of settings (.learning_rate, .warmup_steps"),
        (
            "run=a, b",
            "cannot read run=a, b: a value with commas, brackets or letters such as é needs two pairs of quotes, as "
            "'run=\"a, b\"'",
        ),
        ("stage.steps", "cannot read stage.steps: write stage.steps=value"),
        ("stage.kl_weight.kind=linera", "schedule kind 'linera' is unknown; choose one of constant, linear"),
        ("wandb.mode=off", "wandb.mode=off is unknown; choose offline, online or disabled"),
        ("distributed=zero", "distributed=zero is unknown; choose one of ddp, fsdp, hsdp"),
        ("shard_size=2", "shard_size=2 is a setting of distributed=hsdp, not of distributed=ddp"),
    ],
)
def test_errors_suggest_the_closest_name_and_nothing_starts(command, argument, sentence):
    calls, status, error = command(argument)
    assert (calls, status) == ([], 2)
    assert sentence in error
    assert error.count("\n") <= 3


def test_unquoted_words_raise_with_advice_on_quotes(command):
    calls, status, error = command("caption=a", "money", "bag", name="sample")
    assert (calls, status) == ([], 2)
    assert "cannot read money: write money=value, or put quotes around all words of caption=a" in error


@pytest.mark.parametrize(
    "caption",
    [
        "a red circle, a blue square",
        "it's {odd} [text] (here): a=b",
        'a "red" circle',
        '"red" and "blue"',
        "'red' or 'blue'",
        "back\\slash, \\",
        'both \\" of them',
        "${dvae} and $5",
        "\\${seed}, \\\\${seed}, \\\\\\${\\",
        '${"a"}',
        "null",
        "12",
    ],
)
def test_caption_is_read_literally(command, caption):
    (composed,), status, _ = command(f"caption={caption}", "seed=3", name="sample")
    assert status == 0
    assert (composed.caption, composed.seed) == (caption, 3)


def test_a_caption_of_question_marks_only_is_explained(command):
    _, status, error = command("caption=???", name="sample")
    assert (status, error) == (2, 'caption=??? is read as a missing value: write "??? ", with a space\n')
    assert command("caption=??? ", name="sample")[0][0].caption == "??? "


def test_quoted_captions_and_sweeps_over_captions_are_parsed_by_hydra(command):
    (composed,), _, _ = command("caption='a red circle, a blue square'", name="sample")
    assert composed.caption == "a red circle, a blue square"
    (composed,), _, _ = command('caption="a \\"red\\" circle"', name="sample")
    assert composed.caption == 'a "red" circle'
    calls, _, _ = command("-m", "caption=red,blue", name="sample")
    assert [call.caption for call in calls] == ["red", "blue"]


def test_with_all_stages_each_stage_is_suggested(command):
    _, _, error = command("stage=all", "stage.batchsize=8")
    assert "did you mean stage.dvae.batch_size or stage.clip.batch_size" in error


def test_a_command_gets_its_options_and_hydra_writes_no_files(command, tmp_path):
    (composed,), status, _ = command("stage=clip", "run=mine", "seed=3")
    assert status == 0
    assert (composed.run, composed.seed, composed.stage.name) == ("mine", 3, "clip")
    assert list(tmp_path.iterdir()) == []
    assert Path.cwd() == tmp_path


def raising(error):
    def act(_):
        raise error

    return act


def test_user_errors_print_a_sentence_and_exit_with_status_2(command):
    for error in (ValueError("no such dVAE"), OSError(28, "No space left on device")):
        _, status, error = command(act=raising(error))
        assert status == 2
        assert error in ("no such dVAE\n", "[Errno 28] No space left on device\n")


@pytest.mark.parametrize(
    ("error", "row"),
    [
        (DivergenceError("training diverged"), "| 2 | an error that one sentence explains"),
        (CheckpointError("could not save"), "| 2 | an error that one sentence explains"),
        (Interrupted("stopped", signal.SIGTERM), "| 128 + n | signal n stopped it"),
    ],
)
def test_exit_statuses_are_those_of_the_docs(command, error, row):
    assert row in (ROOT / "docs/slurm.md").read_text()
    status = str(command(act=raising(error))[1])
    assert status == row.split()[1] or int(status) == 128 + error.signum


def test_other_errors_keep_their_traceback(command, monkeypatch):
    with pytest.raises(TypeError, match="a defect"):
        command(act=raising(TypeError("a defect")))


def test_hydra_full_error_shows_the_traceback(monkeypatch):
    monkeypatch.setenv(config.HYDRA_FULL_ERROR, "1")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(ValueError, match="no such dVAE"):
        config.command("train")(raising(ValueError("no such dVAE")))()
    monkeypatch.setattr(sys, "argv", ["train.py", "stage.stepz=1"])
    with pytest.raises(HydraException):
        config.command("train")(lambda _: None)()


def test_a_stop_signal_exits_with_128_plus_its_number(command):
    _, status, error = command(act=raising(Interrupted("stopped at step 5", signal.SIGTERM)))
    assert (status, error) == (143, "stopped at step 5\n")
    assert command(act=raising(KeyboardInterrupt()))[1:] == (130, "stopped\n")


@pytest.mark.parametrize("arguments", [["-m", "run=kl", "seed=1,2"], ["run=kl", "seed=1,2", "-m"]])
def test_the_jobs_of_a_sweep_have_different_run_names(command, arguments):
    names = []
    calls, status, _ = command(*arguments, act=lambda composed: names.append(config.run_name(composed.run)))
    assert status == 0
    assert names == ["kl-seed_1", "kl-seed_2"]
    assert [composed.seed for composed in calls] == [1, 2]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ("stage.kl_weight.end=-0.5,0.5", ["s-kl_weight.end_-0.5", "s-kl_weight.end_0.5"]),
        ("dvae=a-b,a+b", ["s-dvae_a-b", "s-dvae_a+b"]),
        ("dvae='a b',a_b,a/b", ["s-dvae_a_b-", "s-dvae_a_b", "s-dvae_a_b-"]),
    ],
)
def test_values_that_differ_in_signs_and_spaces_only_have_different_run_names(command, values, shown):
    names = []
    command("-m", "run=s", values, act=lambda composed: names.append(config.run_name(composed.run)))
    assert len(set(names)) == len(shown)
    assert all(name.startswith(start) for name, start in zip(names, shown, strict=True))


def test_outside_a_sweep_the_run_name_is_unchanged(command):
    names = []
    command("run=kl", "seed=1", act=lambda composed: names.append(config.run_name(composed.run)))
    assert names == ["kl"]


def test_long_run_names_of_a_sweep_are_shortened_and_differ(command):
    names = []
    long = "x" * 150
    command("-m", f"dvae={long}a,{long}b", act=lambda composed: names.append(config.run_name(composed.run)))
    assert len(set(names)) == 2
    assert all(len(name) <= 120 for name in names)


def test_a_failed_job_does_not_stop_a_sweep_and_is_reported(command):
    def act(composed):
        if composed.seed == 1:
            raise ValueError("seed 1 fails")

    calls, status, error = command("-m", "seed=1,2", act=act)
    assert len(calls) == 2
    assert status == 2
    assert "seed 1 fails\n" in error
    assert "Traceback" not in error


def test_a_stopped_job_stops_the_sweep(command):
    calls, status, _ = command("-m", "seed=1,2", act=raising(Interrupted("stopped", signal.SIGTERM)))
    assert (len(calls), status) == (1, 143)
