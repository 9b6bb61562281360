"""A sweep's folder, read and told: what finished is averaged, and what did not is listed with its reason."""

import json
import shutil
from dataclasses import replace

import pytest
from written_sweeps import ABLATION, job, leave, planned

from dalle.ablation import AblationConfig
from dalle.ablations import page
from dalle.ablations.outcomes import Planned
from dalle.ablations.sweep import Sweep
from dalle.evaluation.record import FORMAT

SALT, SUGAR = ({"error": 1.0, "codes": 20.0}, {"error": 1.1, "codes": 20.2}), ({"error": 3.25, "codes": 20.0},) * 2


@pytest.fixture
def folder(tmp_path):
    """Two tastes with two seeds each."""
    for taste, runs in (("salt", SALT), ("sugar", SUGAR)):
        for seed, measures in enumerate(runs):
            leave(tmp_path, job(taste, seed), measures)
    return tmp_path / "ablation" / "taste"


def read(out, **changes) -> Sweep:
    return Sweep.read(ABLATION, "laptop", out / "ablation" / "taste", planned(out, **changes))


def test_runs_become_means_spreads_and_a_verdict_in_words(folder, tmp_path):
    sweep = read(tmp_path)
    error, codes = sweep.measures
    assert (error.mean("salt"), error.spread("salt")) == (pytest.approx(1.05), pytest.approx(0.0707, rel=1e-3))
    assert page.answer(sweep) == "agrees"
    text = page.one_sweep(sweep, "plot.png")
    assert "| salt ◂ | 2 | **1.05 ± 0.07** | **20.1 ± 0.1** |" in text
    assert "| sugar | 2 | 3.25 ± 0 (+2.2*) | 20 ± 0 (-0.1) |" in text
    assert '`error`, "salt": better than "sugar".' in text
    assert '`codes`, "salt": as good as "sugar".' in text
    assert "4 runs, seeds 0, 1, 10 updates each, 4 minutes together" in text
    assert "python train.py -m +ablation=taste" in text
    assert "![taste](plot.png)" in text
    assert "Without results" not in text


def test_what_did_not_finish_is_listed_with_its_reason(tmp_path):
    leave(tmp_path, job("salt", 0), SALT[0])
    leave(tmp_path, job("sugar", 0), SUGAR[0], "failed", "DivergenceError: loss was not finite")
    leave(tmp_path, job("salt", 1), SALT[1], "running")
    cut = leave(tmp_path, job("pepper", 0), SALT[1], "running")
    (cut / "metrics.jsonl").write_text('{"step": 7, "split": "train"}\n{"step": 8, "spl')
    sweep = read(tmp_path, tastes=("salt", "sugar", "pepper"))
    assert [each.label for each in sweep.finished] == ["salt"]
    assert page.answer(sweep) == "cannot tell (not all runs have finished)"
    assert page.section(sweep, None)[-7:] == [
        "Without results, 5 of 6:",
        "",
        "- taste_sugar-seed_0: failed: DivergenceError: loss was not finite",
        "- taste_pepper-seed_0: unfinished, last heard of at step 7",
        "- taste_salt-seed_1: unfinished, last heard of at step 5",
        "- taste_sugar-seed_1: not begun",
        "- taste_pepper-seed_1: not begun",
    ]


def test_further_seeds_count_and_what_was_moved_aside_does_not(folder, tmp_path):
    leave(tmp_path, job("salt", 7), {"error": 7.0, "codes": 1.0})
    aside = folder / "taste_salt-seed_1.1"
    (folder / "taste_salt-seed_1").rename(aside)
    sweep = read(tmp_path)
    assert sorted(each.seed for each in sweep.finished if each.label == "salt") == [0, 7]
    assert [each.missing for each in sweep.outcomes if each.missing] == ["not begun"]


def test_a_job_of_another_format_is_told_in_a_sentence(folder, tmp_path):
    path = folder / "taste_salt-seed_0" / "job.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 9}))
    (missing,) = (each.missing for each in read(tmp_path).outcomes if each.missing)
    assert missing == f"{path} has format 9 but this version reads format 1: train it again"


def broken_job(run):
    (run / "job.json").write_text('{"format": 1}')


def cut_weights(run):
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:20])


def lose_state(run):
    shutil.rmtree(run / "state")


def lose_weights(run):
    (run / "model.safetensors").unlink()


def lose_the_last_validation(run):
    path = run / "metrics.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n5\n")


def write_no_text(run):
    (run / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (broken_job, "cannot be read: KeyError: 'status'"),
        (cut_weights, "cannot be read: SafetensorError: "),
        (lose_state, "it has no state"),
        (lose_weights, "cannot be read: FileNotFoundError: "),
        (lose_the_last_validation, "metrics.jsonl ends at step 5 of 10"),
        (write_no_text, "unfinished, last heard of at step 0"),
    ],
)
def test_a_run_with_anything_broken_in_it_is_listed_and_the_others_are_reported(folder, tmp_path, spoil, reason):
    spoil(folder / "taste_salt-seed_0")
    (folder / "stranger").mkdir()
    broken_job(folder / "stranger")
    sweep = read(tmp_path)
    assert len(sweep.finished) == 3
    (missing,) = (each.missing for each in sweep.outcomes if each.missing)
    assert reason in missing


def test_runs_that_differ_in_more_than_what_is_compared_are_told(folder, tmp_path):
    jobs = [
        each._replace(settings={"stage.taste": each.label, "stage.depth": number % 2})
        for number, each in enumerate(planned(tmp_path))
    ]
    assert Sweep.read(ABLATION, "laptop", folder, jobs).unlike == {}
    for number, path in enumerate(sorted(folder.glob("*/state/*/state.json"))):
        state = json.loads(path.read_text())
        state["identity"]["stage"] |= {"depth": number, "batch_size": 8 if number else 4, "log_every": number}
        path.write_text(json.dumps(state))
    sweep = Sweep.read(ABLATION, "laptop", folder, jobs)
    assert sweep.unlike == {"stage.batch_size": ["4", "8"]}
    assert page.answer(sweep) == "agrees (runs are not alike)"
    told = "- Beware: runs differ in more than what is compared: `stage.batch_size` is 4 or 8."
    assert told in page.section(sweep, None)


def test_a_measure_that_was_not_finite_in_a_run_is_told(folder, tmp_path):
    path = folder / "taste_salt-seed_0" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"error": 1.0,', '"error": null,'))
    (warning,) = page.warnings(read(tmp_path))
    assert warning == "`error` is missing, or was not finite, in 1 of 4 runs."


def test_a_measure_that_older_runs_lack_is_left_open(folder, tmp_path):
    ablation = replace(ABLATION, measures={**ABLATION.measures, "gap": "low"})
    sweep = Sweep.read(ablation, "laptop", folder, planned(tmp_path))
    assert page.table(sweep)[2].endswith("| **20.1 ± 0.1** |  |")


def test_an_evaluation_gives_a_value_for_each_of_its_points(tmp_path):
    ablation = AblationConfig("blur", "z", "evaluate", along="radius", points=["0", "2"], measures={"fed_{}": "low"})
    jobs = [Planned("", seed, tmp_path / f"seed_{seed}") for seed in (0, 1, 2)]
    for each, version in zip(jobs[:2], (FORMAT, 1), strict=True):
        each.folder.mkdir()
        record = {"format": version, "subject": {}, "parts": {}, "fed_0": 5.0, "fed_2": 7.0}
        (each.folder / "metrics.json").write_text(json.dumps(record))
    sweep = Sweep.read(ablation, "laptop", tmp_path, jobs)
    assert page.table(sweep)[2:] == ["| 0 | 1 | **5** |", "| 2 | 1 | 7 |"]
    assert page.counted(sweep) == "1 of 3"
    told = "\n".join(page.section(sweep, None))
    assert "seed_1: " in told and "has format 1 but this version reads format 2: run evaluate.py again" in told
    assert "- seed_2: not begun, or unfinished" in told


def test_a_power_law_is_found_where_there_is_one(tmp_path):
    ablation = replace(ABLATION, power_law="error")
    for taste, parameters in {"a": 100, "b": 1_000, "c": 10_000}.items():
        leave(tmp_path, job(taste, 0), {"error": 3 * parameters**-0.25, "codes": 1}, parameters=parameters)
    folder = tmp_path / "ablation" / "taste"
    law = Sweep.read(ablation, "laptop", folder, planned(tmp_path, ("a", "b", "c"), (0,))).power_law()
    assert law is not None
    assert (law.factor, law.exponent, law.explained) == (pytest.approx(3), pytest.approx(-0.25), pytest.approx(1))


def test_two_sizes_are_no_power_law(tmp_path):
    for taste, parameters in {"a": 100, "b": 1_000}.items():
        leave(tmp_path, job(taste, 0), SALT[0], parameters=parameters)
    folder = tmp_path / "ablation" / "taste"
    jobs = planned(tmp_path, ("a", "b"), (0,))
    assert Sweep.read(replace(ABLATION, power_law="error"), "laptop", folder, jobs).power_law() is None
