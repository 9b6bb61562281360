"""report.py by its command line: one sweep, all of them, and runs side by side."""

import re

import pytest
from test_ablations import TINY

from dalle.cli.sweeps import ablations


@pytest.fixture
def swept(train):
    """A sweep of the poolings, two updates a run, in outputs/."""
    status, printed = train("-m", "+ablation=pool", "seed=0,1", *TINY)
    assert status == 0, printed


def test_a_sweep_becomes_a_table_and_a_plot_beside_its_runs(swept, run_command, tmp_path):
    status, printed = run_command("report", "sweep=outputs/ablation/pool")
    assert status == 0, printed
    text = (tmp_path / "outputs" / "ablation" / "pool" / "report.md").read_text()
    assert "**Do maxima or means make the better encoder" in text
    assert re.search(r"\| max ◂ \| 2 \| .* ± ", text)
    assert "model.pool_max-seed_2: not begun" in text
    assert (tmp_path / "outputs" / "ablation" / "pool" / "report.png").stat().st_size > 5_000


def test_all_sweeps_are_on_one_page_the_ones_without_runs_too(swept, run_command, tmp_path):
    status, printed = run_command("report")
    assert status == 0, printed
    text = (tmp_path / "docs" / "ablations.md").read_text()
    assert re.findall(r"^## ([a-z]) ", text, re.MULTILINE) == list("abcdefghijklmnopqrst")
    assert text.count("no finished runs") >= len(ablations()) - 1
    linked = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert linked == ["ablations/pool.png"]
    assert (tmp_path / "docs" / linked[0]).is_file()
    anchors = {f"#{'-'.join(head.split())}" for head in re.findall(r"^## (.*)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\((#.*?)\)", text)) == anchors


def test_runs_are_set_side_by_side(swept, run_command, tmp_path):
    names = [f"outputs/ablation/pool/model.pool_{each}-seed_0" for each in ("max", "average")]
    status, printed = run_command("report", f"runs={','.join(names)}")
    assert status == 0, printed
    folder = tmp_path / "outputs" / "comparison"
    text = (folder / "report.md").read_text()
    assert "| | model.pool_max-seed_0 | model.pool_average-seed_0 |" in text
    assert "| `stage.model.pool` | max | average |" in text
    assert re.search(r"\| `hard_error` \| \d\.\d+ \| \d\.\d+ \|", text)
    assert sorted(path.name for path in folder.iterdir()) == ["curves.png", "report.md"]  # dVAEs draw nothing


def test_transformers_side_by_side_draw_the_same_captions_with_the_same_seeds(train, run_command, tmp_path):
    train("stage=dvae", "preset=tiny", "run=codes", "wandb.mode=disabled", *TINY)
    sizes = ["text_positions=40", "text_vocabulary=300", "width=16", "depth=1", "heads=2"]
    common = [each for each in TINY if "model" not in each] + [f"stage.model.{each}" for each in sizes]
    for run, steps in (("a", 1), ("b", 2)):
        more = ["stage.workers=0", f"stage.steps={steps}", "stage.tokenizer_records=50", "dvae=outputs/dvae/codes"]
        status, printed = train("stage=transformer", "preset=tiny", f"run={run}", "wandb.mode=disabled", *common, *more)
        assert status == 0, printed
    folders = "outputs/transformer/a,outputs/transformer/b"
    status, printed = run_command("report", f"runs={folders}", "captions=2", "candidates=2", "device=cpu")
    assert status == 0, printed
    folder = tmp_path / "outputs" / "comparison"
    assert (folder / "pictures.png").is_file()
    assert "![pictures](pictures.png)" in (folder / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["sweep=outputs/ablation/nothing"], "there is no ablation nothing; there are"),
        (["sweep=outputs/ablation/pool", "runs=a,b"], "not both at once"),
        (["runs=outputs/a"], "name at least two run folders"),
        (["runs=outputs/a,outputs/b"], "outputs/a is no training run, or one that has saved nothing yet"),
    ],
)
def test_what_cannot_be_reported_is_said_in_a_sentence(run_command, arguments, sentence):
    status, printed = run_command("report", *arguments)
    assert status == 2
    assert sentence in printed


def test_what_is_not_installed_is_named_before_anything_is_read(run_command, monkeypatch):
    monkeypatch.setattr("dalle.optional_dependencies.find_spec", lambda name: None)
    status, printed = run_command("report")
    assert status == 2
    assert "report.py needs matplotlib, scipy: install it with pip install 'dalle[eval]'" in printed
