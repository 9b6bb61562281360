"""report.py from the command line: one sweep, all sweeps, and comparison of runs."""

import re
import shutil

import pytest
from test_ablations import TINY

from dalle.ablations.comparison import read_run
from dalle.cli.sweeps import ablations
from dalle.evaluation.metrics_file import MetricsFile
from dalle.training import state_files


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Folder for the outputs of the sweep, which runs once."""
    return tmp_path_factory.mktemp("sweep") / "outputs"


@pytest.fixture
def swept(train, kept, tmp_path):
    """Run a sweep of `pool`, two updates per run, in outputs/."""
    if not kept.exists():
        status, printed = train("-m", "+ablation=pool", "seed=0,1", *TINY)
        assert status == 0, printed
        shutil.copytree(tmp_path / "outputs", kept)
    else:
        shutil.copytree(kept, tmp_path / "outputs")


def test_report_of_one_sweep_has_table_and_plot(swept, run_command, tmp_path):
    status, printed = run_command("report", "sweep=outputs/ablation/pool")
    assert status == 0, printed
    text = (tmp_path / "outputs" / "ablation" / "pool" / "report.md").read_text()
    assert "**Should the encoder downsample with max-pooling" in text
    assert re.search(r"\| max ◂ \| 2 \| .* ± ", text)
    assert "model.pool_max-seed_2: not started" in text
    assert (tmp_path / "outputs" / "ablation" / "pool" / "report.png").stat().st_size > 5_000


def test_report_of_all_sweeps_includes_those_without_runs(swept, run_command, tmp_path):
    status, printed = run_command("report")
    assert status == 0, printed
    text = (tmp_path / "outputs" / "ablation" / "report.md").read_text()
    assert re.findall(r"^## ([a-z]) ", text, re.MULTILINE) == list("abcdefghijklmnopqrst")
    assert text.count("no finished runs") >= len(ablations()) - 1
    linked = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert linked == ["report/pool.png"]
    assert (tmp_path / "outputs" / "ablation" / linked[0]).is_file()
    anchors = {f"#{'-'.join(head.split())}" for head in re.findall(r"^## (.*)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\((#.*?)\)", text)) == anchors


@pytest.mark.parametrize("name", ["kl_weight-huge", "pool-old", "pool-gpu"])
def test_a_folder_of_no_size_is_refused_with_the_sizes(run_command, name):
    status, printed = run_command("report", f"sweep=outputs/ablation/{name}")
    size = name.split("-")[1]
    assert (status, printed.count("\n")) == (2, 1)
    assert f"{name} is not the folder of a sweep: unknown size '{size}'; choose one of base, laptop" in printed


def test_runs_are_compared(swept, run_command, tmp_path):
    names = [f"outputs/ablation/pool/model.pool_{pool}-seed_0" for pool in ("max", "average")]
    status, printed = run_command("report", f"runs={','.join(names)}")
    assert status == 0, printed
    folder = tmp_path / "outputs" / "comparison"
    text = (folder / "report.md").read_text()
    assert "| | model.pool_max-seed_0 | model.pool_average-seed_0 |" in text
    assert "| `stage.model.pool` | max | average |" in text
    assert re.search(r"\| `hard_error` \| \d\.\d+ \| \d\.\d+ \|", text)
    assert sorted(path.name for path in folder.iterdir()) == ["curves.png", "report.md"]  # dVAEs have no samples


def test_comparison_of_transformers_has_samples(train, run_command, tmp_path):
    train("stage=dvae", "preset=tiny", "run=codes", "wandb.mode=disabled", *TINY)
    sizes = ["text_positions=40", "text_vocabulary=300", "width=16", "depth=1", "heads=2"]
    common = [setting for setting in TINY if "model" not in setting] + [f"stage.model.{setting}" for setting in sizes]
    for run, steps in (("a", 1), ("b", 2)):
        more = ["stage.workers=0", f"stage.steps={steps}", "stage.tokenizer_records=50", "dvae=outputs/dvae/codes"]
        status, printed = train("stage=transformer", "preset=tiny", f"run={run}", "wandb.mode=disabled", *common, *more)
        assert status == 0, printed
    folders = "outputs/transformer/a,outputs/transformer/b"
    status, printed = run_command("report", f"runs={folders}", "captions=2", "candidates=2", "device=cpu")
    assert status == 0, printed
    folder = tmp_path / "outputs" / "comparison"
    assert (folder / "samples.png").is_file()
    assert "![samples](samples.png)" in (folder / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["sweep=outputs/ablation/nothing"], "unknown ablation 'nothing'; choose one of"),
        (["sweep=outputs/ablation/pool", "runs=a,b"], "not both"),
        (["runs=outputs/a"], "give at least two different run folders"),
        (["runs=outputs/a,outputs/b"], "outputs/a is not a training run, or has not saved a checkpoint yet"),
    ],
)
def test_invalid_options_are_reported(run_command, arguments, sentence):
    status, printed = run_command("report", *arguments)
    assert status == 2
    assert sentence in printed


def test_runs_of_stage_all_are_compared_with_the_evaluation_beside_them(tmp_path):
    run = tmp_path / "all" / "dvae"
    state_files.save_state(run, 2, {}, {"identity": {"stage": {"steps": 2}}})
    (run / "metrics.jsonl").write_text('{"split": "val", "step": 2, "hard_error": 0.5}\n')
    MetricsFile({"data": {}}, {"psnr": 20.0}).write(tmp_path / "all" / "metrics.json")
    with pytest.raises(ValueError, match=f"holds runs of single stages, such as {re.escape(str(run))}"):
        read_run(tmp_path / "all", "all")
    found = read_run(run, "all")
    assert (found.evaluation_metrics, found.notes) == ({"psnr": 20.0}, [])


def test_missing_packages_are_reported_first(run_command, monkeypatch):
    monkeypatch.setattr("dalle.optional_dependencies.find_spec", lambda name: None)
    status, printed = run_command("report")
    assert status == 2
    assert "report.py needs matplotlib, scipy: install it with pip install 'dalle[eval]'" in printed
