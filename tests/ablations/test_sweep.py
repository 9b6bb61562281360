"""Sweeps read from their folders: finished runs are averaged, others are listed with the reason."""

import json
import shutil
from dataclasses import replace

import pytest
from safetensors.torch import save_file
from sweep_files import ABLATION, job, planned, write_run

from dalle.ablation_config import AblationConfig
from dalle.ablations import sweep_page
from dalle.ablations.run_results import PlannedRun, parameter_count
from dalle.ablations.sweep import Sweep
from dalle.evaluation.metrics_file import FORMAT
from dalle.models.clip.resnet import ResNetEncoder
from dalle.weights_files import WEIGHTS

SALT, SUGAR = ({"error": 1.0, "codes": 20.0}, {"error": 1.1, "codes": 20.2}), ({"error": 3.25, "codes": 20.0},) * 2


@pytest.fixture
def folder(tmp_path):
    """Folder of a sweep of two values with two seeds each."""
    for taste, runs in (("salt", SALT), ("sugar", SUGAR)):
        for seed, measures in enumerate(runs):
            write_run(tmp_path, job(taste, seed), measures)
    return tmp_path / "ablation" / "taste"


def read(out, **changes) -> Sweep:
    return Sweep.read(ABLATION, "laptop", out / "ablation" / "taste", planned(out, **changes))


def test_page_has_means_standard_deviations_and_claim_results(folder, tmp_path):
    sweep = read(tmp_path)
    error, codes = sweep.metrics
    assert (error.mean("salt"), error.std("salt")) == (pytest.approx(1.05), pytest.approx(0.0707, rel=1e-3))
    assert sweep_page.result_phrase(sweep) == "agrees"
    text = sweep_page.single_sweep_page(sweep, "plot.png")
    assert "| salt ◂ | 2 | **1.05 ± 0.07** | **20.1 ± 0.1** |" in text
    assert "| sugar | 2 | 3.25 ± 0 (+2.2*) | 20 ± 0 (-0.1) |" in text
    assert '`error`, "salt": better than "sugar".' in text
    assert '`codes`, "salt": as good as "sugar".' in text
    assert "4 runs, seeds 0, 1, 10 updates each, 4 minutes in total" in text
    assert "python train.py -m +ablation=taste" in text
    assert "![taste](plot.png)" in text
    assert "Runs without results" not in text


def test_runs_without_results_are_listed_with_the_reason(tmp_path):
    write_run(tmp_path, job("salt", 0), SALT[0])
    write_run(tmp_path, job("sugar", 0), SUGAR[0], "failed", "DivergenceError: loss was not finite")
    write_run(tmp_path, job("salt", 1), SALT[1], "running")
    truncated = write_run(tmp_path, job("pepper", 0), SALT[1], "running")
    (truncated / "metrics.jsonl").write_text('{"step": 7, "split": "train"}\n{"step": 8, "spl')
    sweep = read(tmp_path, tastes=("salt", "sugar", "pepper"))
    assert [result.label for result in sweep.finished] == ["salt"]
    assert sweep_page.result_phrase(sweep) == "inconclusive (some runs have not finished)"
    assert sweep_page.section_lines(sweep, None)[-7:] == [
        "Runs without results, 5 of 6:",
        "",
        "- taste_sugar-seed_0: failed: DivergenceError: loss was not finite",
        "- taste_pepper-seed_0: unfinished, last logged step 7",
        "- taste_salt-seed_1: unfinished, last logged step 5",
        "- taste_sugar-seed_1: not started",
        "- taste_pepper-seed_1: not started",
    ]


def test_unplanned_seeds_are_included_and_renamed_folders_are_not(folder, tmp_path):
    write_run(tmp_path, job("salt", 7), {"error": 7.0, "codes": 1.0})
    (folder / "taste_salt-seed_1").rename(folder / "taste_salt-seed_1.1")
    sweep = read(tmp_path)
    assert sorted(result.seed for result in sweep.finished if result.label == "salt") == [0, 7]
    assert [result.missing_reason for result in sweep.results if result.missing_reason] == ["not started"]


def test_job_json_of_another_format_is_reported(folder, tmp_path):
    path = folder / "taste_salt-seed_0" / "job.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 9}))
    (missing,) = (result.missing_reason for result in read(tmp_path).results if result.missing_reason)
    assert missing == f"{path} has format 9 but this version reads format 1: train it again"


def incomplete_job_json(run):
    (run / "job.json").write_text('{"format": 1}')


def truncate_weights(run):
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:20])


def delete_state(run):
    shutil.rmtree(run / "state")


def delete_weights(run):
    (run / "model.safetensors").unlink()


def delete_last_validation(run):
    path = run / "metrics.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n5\n")


def write_binary_metrics(run):
    (run / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (incomplete_job_json, "cannot be read: KeyError: 'status'"),
        (truncate_weights, "model.safetensors is truncated or damaged: "),
        (delete_state, "it has no state"),
        (delete_weights, "model.safetensors is missing"),
        (delete_last_validation, "metrics.jsonl ends at step 5 of 10"),
        (write_binary_metrics, "unfinished, last logged step 0"),
    ],
)
def test_damaged_run_is_listed_with_the_reason_and_others_are_reported(folder, tmp_path, damage, reason):
    damage(folder / "taste_salt-seed_0")
    (folder / "unrelated").mkdir()
    incomplete_job_json(folder / "unrelated")
    sweep = read(tmp_path)
    assert len(sweep.finished) == 3
    (missing,) = (result.missing_reason for result in sweep.results if result.missing_reason)
    assert reason in missing


def test_differences_in_settings_that_are_not_varied_give_a_warning(folder, tmp_path):
    jobs = [
        run._replace(settings={"stage.taste": run.label, "stage.depth": number % 2})
        for number, run in enumerate(planned(tmp_path))
    ]
    assert Sweep.read(ABLATION, "laptop", folder, jobs).unintended_differences == {}
    for number, path in enumerate(sorted(folder.glob("*/state/*/state.json"))):
        state = json.loads(path.read_text())
        state["identity"]["stage"] |= {"depth": number, "batch_size": 8 if number else 4, "log_every": number}
        path.write_text(json.dumps(state))
    sweep = Sweep.read(ABLATION, "laptop", folder, jobs)
    assert sweep.unintended_differences == {"stage.batch_size": ["4", "8"]}
    assert sweep_page.result_phrase(sweep) == "agrees (runs differ in other settings)"
    warning = "- Warning: runs differ in a setting that the sweep does not vary: `stage.batch_size` is 4 or 8."
    assert warning in sweep_page.section_lines(sweep, None)


def test_metric_that_is_not_finite_in_a_run_gives_a_warning(folder, tmp_path):
    path = folder / "taste_salt-seed_0" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"error": 1.0,', '"error": null,'))
    (warning,) = sweep_page.comparison_warnings(read(tmp_path))
    assert warning == "`error` is missing, or was not finite, in 1 of 4 runs."


def test_metric_that_runs_lack_has_an_empty_cell(folder, tmp_path):
    ablation = replace(ABLATION, metrics={**ABLATION.metrics, "gap": "lower"})
    sweep = Sweep.read(ablation, "laptop", folder, planned(tmp_path))
    assert sweep_page.table_lines(sweep)[2].endswith("| **20.1 ± 0.1** |  |")


def test_evaluation_gives_a_row_for_each_axis_value(tmp_path):
    ablation = AblationConfig(
        "blur", "z", "evaluate", axis="radius", axis_values=["0", "2"], metrics={"fd_effnet_{}": "lower"}
    )
    jobs = [PlannedRun("", seed, tmp_path / f"seed_{seed}") for seed in (0, 1, 2)]
    for run, version in zip(jobs[:2], (FORMAT, 1), strict=True):
        run.folder.mkdir()
        content = {"format": version, "context": {}, "metrics": {}, "fd_effnet_0": 5.0, "fd_effnet_2": 7.0}
        (run.folder / "metrics.json").write_text(json.dumps(content))
    sweep = Sweep.read(ablation, "laptop", tmp_path, jobs)
    assert sweep_page.table_lines(sweep)[2:] == ["| 0 | 1 | **5** |", "| 2 | 1 | 7 |"]
    assert sweep_page.run_count(sweep) == "1 of 3"
    text = "\n".join(sweep_page.section_lines(sweep, None))
    assert "seed_1: " in text and "has format 1 but this version reads format 3: run evaluate.py again" in text
    assert "- seed_2: not started, or unfinished" in text


def test_power_law_is_recovered(tmp_path):
    ablation = replace(ABLATION, power_law="error")
    for taste, parameters in {"a": 100, "b": 1_000, "c": 10_000}.items():
        write_run(tmp_path, job(taste, 0), {"error": 3 * parameters**-0.25, "codes": 1}, parameters=parameters)
    folder = tmp_path / "ablation" / "taste"
    law = Sweep.read(ablation, "laptop", folder, planned(tmp_path, ("a", "b", "c"), (0,))).power_law()
    assert law is not None
    assert (law.factor, law.exponent, law.r_squared) == (pytest.approx(3), pytest.approx(-0.25), pytest.approx(1))


def test_statistics_of_batch_norm_are_not_counted_as_parameters(tmp_path):
    encoder = ResNetEncoder(32, width=4, blocks=(1, 1, 1, 1), heads=2, embedding=8)
    save_file(encoder.state_dict(), tmp_path / WEIGHTS)
    assert parameter_count(tmp_path) == sum(parameter.numel() for parameter in encoder.parameters())


def test_power_law_needs_three_sizes(tmp_path):
    for taste, parameters in {"a": 100, "b": 1_000}.items():
        write_run(tmp_path, job(taste, 0), SALT[0], parameters=parameters)
    folder = tmp_path / "ablation" / "taste"
    jobs = planned(tmp_path, ("a", "b"), (0,))
    assert Sweep.read(replace(ABLATION, power_law="error"), "laptop", folder, jobs).power_law() is None
