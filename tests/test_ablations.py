"""configs/ablation: each of the paper's questions composes with every value, and says what it is about."""

import json
import re
from dataclasses import replace

import pytest
import torch

from dalle.ablation import label, values_of
from dalle.cli.config import EXPERIMENT_SIZES, compose
from dalle.cli.config_groups import CONFIG_DIR, options
from dalle.cli.sweeps import ablation_jobs, ablations, compose_jobs
from dalle.models.dvae.model import DiscreteVAE
from dalle.models.transformer.model import Transformer
from dalle.training.job import Job

LETTERS = "abcdefghijklmnopqrst"
SIZES = sorted(set(options("size")) - EXPERIMENT_SIZES)
TINY = [
    "data.image_size=16",
    "device=cpu",
    "stage.steps=2",
    "stage.batch_size=4",
    "stage.validation_pictures=4",
    "stage.precision=float32",
    *(f"stage.model.{each}" for each in ["vocabulary=8", "width=8", "decoder_input=8", "blocks_per_group=1"]),
]


@pytest.fixture(scope="module")
def jobs():
    """Every job of every ablation, by name."""
    return {name: ablation_jobs(name) for name in ablations()}


def header(name: str) -> str:
    lines = (CONFIG_DIR / "ablation" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


def test_every_question_has_a_file(jobs):
    letters = {name: all_jobs[0].ablation.letter for name, all_jobs in jobs.items()}
    assert sorted(letters.values()) == list(LETTERS)


def test_the_page_of_all_ablations_asks_every_question_and_quotes_every_claim_and_finding(jobs):
    text = (CONFIG_DIR.parent / "docs" / "ablations.md").read_text(encoding="utf-8")
    for each in (together[0].ablation for together in jobs.values()):
        assert (
            f"\n## {each.letter} {each.name.replace('_', ' ')}\n\n**{each.question}**\n\n- Paper: {each.claim}\n"
            in text
        )
        assert each.finding and f"- Found: {each.finding}\n" in text


@pytest.mark.parametrize("name", ablations())
def test_a_file_says_what_the_paper_says_how_to_run_it_and_what_that_costs(jobs, name):
    ablation = jobs[name][0].ablation
    assert ablation.name == name
    assert re.fullmatch(r"[a-z_]+", name)  # a size's name goes behind a hyphen
    assert ablation.question.endswith("?")
    assert re.search(r"\((.*Sec\.|App\.|fn\.|Table)", ablation.claim)
    command = " ".join([f"python {ablation.command}.py -m +ablation={name}", ablation.needs]).strip()
    told = header(name)
    assert f"# Run:   {command}\n" in told
    assert "\n# Paper: " in told
    assert re.search(r"\n# Cost:  \d+ runs? of .* on one core", told)
    assert int(re.search(r"# Cost:  (\d+)", told)[1]) == len(jobs[name])


@pytest.mark.parametrize("name", ablations())
def test_jobs_differ_in_what_is_varied_and_in_nothing_else(jobs, name):
    together = jobs[name]
    ablation = together[0].ablation
    assert len({(label(values_of(job, ablation)), job.seed) for job in together}) == len(together)
    for job in together:
        same_seed = [each for each in together if each.seed == job.seed]
        assert [values_of(each, ablation) for each in same_seed] == [
            values_of(each, ablation) for each in together if each.seed == together[0].seed
        ]
    if ablation.command == "train":
        assert len({Job.of(job).folder("outputs") for job in together}) == len(together)
    else:
        assert len({job.file for job in together}) == len(together)
        assert all(job.file.parts[:3] == ("outputs", "ablation", name) for job in together)


@pytest.mark.parametrize("name", ablations())
def test_what_a_file_expects_can_be_found_in_its_sweep(jobs, name):
    ablation = jobs[name][0].ablation
    values = ablation.points or {label(values_of(job, ablation)) for job in jobs[name]}
    assert ablation.measures
    assert not ablation.paper or ablation.paper in values
    for each in ablation.expect:
        assert each.measure in ablation.measures
        assert {each.value, *each.over} <= set(values)
        assert each.value not in each.over
    assert not ablation.power_law or ablation.power_law in ablation.measures
    assert all(("{}" in measure) == bool(ablation.points) for measure in ablation.measures)


@pytest.mark.parametrize("name", ablations())
def test_the_models_of_every_value_can_be_built(jobs, name):
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
def test_a_size_makes_runs_larger_and_keeps_them_apart(name, size):
    together = ablation_jobs(name, size)
    sweeps = {Job.of(job).folder("outputs").parent.name for job in together}
    assert sweeps == {name if size == "laptop" else f"{name}-{size}"}
    if size == "laptop":
        return
    preset = compose("train", [f"stage={together[0].stage.name}", f"preset={size}"]).stage
    changed = values_of(together[0], together[0].ablation)
    assert together[0].stage.steps == preset.steps
    assert together[0].stage.model.width == preset.model.width
    assert together[0].data.image_size == {"small": 128}.get(size, 256)
    assert changed.keys() == together[0].ablation.vary.keys()


def test_jobs_composed_at_once_are_those_composed_one_by_one():
    given = ["+ablation=powersgd", "dvae=somewhere"]
    one_by_one = [
        compose("train", [*given, "seed=1", f"stage.compression={{{compression}}}"])
        for compression in ("rank:0", "rank:16", "rank:4", "rank:1", "rank:4,basis:warm", "rank:4,basis:resampled")
    ]
    jobs = len(one_by_one)
    assert compose_jobs("train", given)[jobs : 2 * jobs] == one_by_one  # after those of seed 0


def test_a_sweep_leaves_a_folder_for_each_job_and_does_nothing_when_run_again(train, tmp_path):
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


def test_a_job_that_starts_over_leaves_its_old_record_with_the_old_run(train, tmp_path):
    sweep = ["-m", "+ablation=pool", "seed=4", "stage.model.pool=max", *TINY]
    train(*sweep)
    folder = tmp_path / "outputs" / "ablation" / "pool" / "model.pool_max-seed_4"
    before = (folder / "job.json").read_bytes()
    status, printed = train(*sweep, "resume=false", "stage.steps=3")
    assert (status, "starting over" in printed) == (0, True)
    assert (folder.with_name(f"{folder.name}.1") / "job.json").read_bytes() == before
    assert json.loads((folder / "job.json").read_text())["status"] == "finished"


def test_a_failing_job_is_recorded_and_listed_and_the_others_run(train, tmp_path):
    (tmp_path / "outputs" / "ablation" / "pool").mkdir(parents=True)
    (tmp_path / "outputs" / "ablation" / "pool" / "model.pool_max-seed_0").write_text("in the way")
    status, printed = train("-m", "+ablation=pool", "seed=0", *TINY)
    assert status == 2
    assert "jobs of this sweep that failed, 1:\n  seed=0 stage.model.pool=max" in printed
    assert (
        json.loads((tmp_path / "outputs" / "ablation" / "pool" / "model.pool_average-seed_0" / "job.json").read_text())[
            "status"
        ]
        == "finished"
    )


def test_a_job_that_cannot_train_says_why_in_its_folder(train, tmp_path):
    status, _ = train("-m", "+ablation=pool", "seed=0", "stage.model.pool=max", *TINY, "data.image_size=20")
    assert status == 2
    path = tmp_path / "outputs" / "ablation" / "pool" / "model.pool_max-seed_0" / "job.json"
    written = json.loads(path.read_text())
    assert written["status"] == "failed"
    assert "do not divide into codes of 8x8 pixels" in written["error"]
