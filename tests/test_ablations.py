"""configs/ablation: every ablation composes for all its values, and its file and docs/ablations.md agree."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dalle.ablation_config import format_values, varied_values
from dalle.cli.config import compose
from dalle.cli.config_groups import CONFIG_DIR, options
from dalle.cli.sweeps import ablation_jobs, ablations, compose_jobs
from dalle.cli.train_config import EXPERIMENT_SIZES
from dalle.models.dvae.model import DiscreteVAE
from dalle.models.transformer.model import Transformer
from dalle.training.job import Job

SIZES = sorted(set(options("size")) - EXPERIMENT_SIZES)
TINY = [
    "data.image_size=16",
    "device=cpu",
    "stage.steps=2",
    "stage.batch_size=4",
    "stage.validation_images=4",
    "stage.precision=float32",
    *(f"stage.model.{setting}" for setting in ["vocabulary=8", "width=8", "decoder_input=8", "blocks_per_group=1"]),
]


@pytest.fixture(scope="module")
def jobs():
    """Every job of every ablation, by name."""
    return {name: ablation_jobs(name) for name in ablations()}


def header(name: str) -> str:
    lines = (CONFIG_DIR / "ablation" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


def test_each_ablation_has_a_letter_of_its_own(jobs):
    letters = [all_jobs[0].ablation.letter for all_jobs in jobs.values()]
    assert all(re.fullmatch("[a-z]+", letter) for letter in letters)  # a part of its address on the page
    assert len(set(letters)) == len(letters)


def test_page_has_every_question_claim_and_finding(jobs):
    text = (Path(__file__).parents[1] / "docs" / "ablations.md").read_text(encoding="utf-8")
    for study in (jobs_of_name[0].ablation for jobs_of_name in jobs.values()):
        assert (
            f"\n## {study.letter} {study.name.replace('_', ' ')}\n\n**{study.question}**\n\n- Paper: {study.claim}\n"
            in text
        )
        assert study.finding and f"- Finding: {study.finding}\n" in text


@pytest.mark.parametrize("name", ablations())
def test_file_header_has_paper_command_and_cost(jobs, name):
    ablation = jobs[name][0].ablation
    assert ablation.name == name
    assert re.fullmatch(r"[a-z_]+", name)  # a size's name goes behind a hyphen
    assert ablation.question.endswith("?")
    assert re.search(r"\((.*Sec\.|App\.|fn\.|Table)", ablation.claim)
    command = " ".join([f"python {ablation.command}.py -m +ablation={name}", ablation.required_options]).strip()
    text = header(name)
    assert f"# Run:   {command}\n" in text
    assert "\n# Paper: " in text
    assert re.search(r"\n# Cost:  \d+ runs? of .* on one core", text)
    assert int(re.search(r"# Cost:  (\d+)", text)[1]) == len(jobs[name])


@pytest.mark.parametrize("name", ablations())
def test_jobs_differ_only_in_varied_settings_and_seed(jobs, name):
    jobs_of_name = jobs[name]
    ablation = jobs_of_name[0].ablation
    assert len({(format_values(varied_values(job, ablation)), job.seed) for job in jobs_of_name}) == len(jobs_of_name)
    for job in jobs_of_name:
        same_seed = [other for other in jobs_of_name if other.seed == job.seed]
        assert [varied_values(other, ablation) for other in same_seed] == [
            varied_values(other, ablation) for other in jobs_of_name if other.seed == jobs_of_name[0].seed
        ]
    if ablation.command == "train":
        assert len({Job.from_config(job).folder("outputs") for job in jobs_of_name}) == len(jobs_of_name)
    else:
        assert len({job.file for job in jobs_of_name}) == len(jobs_of_name)
        assert all(job.file.parts[:3] == ("outputs", "ablation", name) for job in jobs_of_name)


@pytest.mark.parametrize("name", ablations())
def test_expectations_refer_to_values_and_metrics_of_the_sweep(jobs, name):
    ablation = jobs[name][0].ablation
    values = ablation.axis_values or {format_values(varied_values(job, ablation)) for job in jobs[name]}
    assert ablation.metrics
    assert not ablation.paper_value or ablation.paper_value in values
    for expectation in ablation.expect:
        assert expectation.metric in ablation.metrics
        assert {expectation.value, *expectation.baselines} <= set(values)
        assert expectation.value not in expectation.baselines
    assert not ablation.power_law or ablation.power_law in ablation.metrics
    assert all(("{}" in metric) == bool(ablation.axis_values) for metric in ablation.metrics)


@pytest.mark.parametrize("name", ablations())
def test_models_of_every_job_can_be_built(jobs, name):
    for job in jobs[name]:
        if job.ablation.command != "train":
            continue
        with torch.device("meta"):
            if job.stage.name == "dvae":
                model = DiscreteVAE(job.stage.model)
                assert job.data.image_size % model.downsample == 0
            else:
                Transformer(replace(job.stage.model, grid=8, image_vocabulary=128))
        assert job.stage.optimizer.learning_rate.steps == job.stage.steps
        job.stage.micro_batch_size(1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["kl_weight", "patterns"])
def test_sizes_change_the_model_and_the_folder(name, size):
    jobs_of_name = ablation_jobs(name, size)
    sweeps = {Job.from_config(job).folder("outputs").parent.name for job in jobs_of_name}
    assert sweeps == {name if size == "laptop" else f"{name}-{size}"}
    if size == "laptop":
        return
    preset = compose("train", [f"stage={jobs_of_name[0].stage.name}", f"preset={size}"]).stage
    changed = varied_values(jobs_of_name[0], jobs_of_name[0].ablation)
    assert jobs_of_name[0].stage.steps == preset.steps
    assert jobs_of_name[0].stage.model.width == preset.model.width
    assert jobs_of_name[0].data.image_size == {"small": 128}.get(size, 256)
    assert changed.keys() == jobs_of_name[0].ablation.vary.keys()


def test_composing_all_jobs_equals_composing_each():
    given = ["+ablation=powersgd", "dvae=somewhere"]
    one_by_one = [
        compose("train", [*given, "seed=1", f"stage.compression={{{compression}}}"])
        for compression in ("rank:0", "rank:16", "rank:4", "rank:1", "rank:4,basis:warm", "rank:4,basis:resampled")
    ]
    jobs = len(one_by_one)
    assert compose_jobs("train", given)[jobs : 2 * jobs] == one_by_one  # after those of seed 0


def test_sweep_has_a_folder_per_job_and_is_not_repeated(train, tmp_path):
    sweep = ["-m", "+ablation=pool", "seed=4", *TINY]
    status, printed = train(*sweep)
    assert status == 0, printed
    folder = tmp_path / "outputs" / "ablation" / "pool"
    assert sorted(path.name for path in folder.iterdir()) == ["model.pool_average-seed_4", "model.pool_max-seed_4"]
    written = json.loads((folder / "model.pool_average-seed_4" / "job.json").read_text())
    assert written["values"] == {"stage.model.pool": "average"}
    assert (written["ablation"], written["seed"], written["status"]) == ("pool", 4, "finished")
    again = train(*sweep)[1]
    assert again.count("finished, 2 updates done") == 2
    status, printed = train(*sweep, "stage.ema.decay=0.5")
    assert (status, printed.count("now 0.5")) == (2, 4)  # at each job, and at the end
    assert json.loads((folder / "model.pool_average-seed_4" / "job.json").read_text()) == written


def test_restarted_job_keeps_job_json_of_the_old_run(train, tmp_path):
    sweep = ["-m", "+ablation=pool", "seed=4", "stage.model.pool=max", *TINY]
    train(*sweep)
    folder = tmp_path / "outputs" / "ablation" / "pool" / "model.pool_max-seed_4"
    before = (folder / "job.json").read_bytes()
    status, printed = train(*sweep, "resume=false", "stage.steps=3")
    assert (status, "starting over" in printed) == (0, True)
    assert (folder.with_name(f"{folder.name}.1") / "job.json").read_bytes() == before
    assert json.loads((folder / "job.json").read_text())["status"] == "finished"


def test_failing_job_is_listed_and_other_jobs_run(train, tmp_path):
    (tmp_path / "outputs" / "ablation" / "pool").mkdir(parents=True)
    (tmp_path / "outputs" / "ablation" / "pool" / "model.pool_max-seed_0").write_text("in the way")
    status, printed = train("-m", "+ablation=pool", "seed=0", *TINY)
    assert status == 2
    assert "1 job of this sweep failed:\n  seed=0 stage.model.pool=max" in printed
    assert (
        json.loads((tmp_path / "outputs" / "ablation" / "pool" / "model.pool_average-seed_0" / "job.json").read_text())[
            "status"
        ]
        == "finished"
    )


def test_job_that_cannot_train_records_the_error(train, tmp_path):
    status, _ = train("-m", "+ablation=pool", "seed=0", "stage.model.pool=max", *TINY, "data.image_size=20")
    assert status == 2
    path = tmp_path / "outputs" / "ablation" / "pool" / "model.pool_max-seed_0" / "job.json"
    written = json.loads(path.read_text())
    assert written["status"] == "failed"
    assert "do not divide into codes of 8x8 pixels" in written["error"]
