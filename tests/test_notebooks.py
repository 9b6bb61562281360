"""Notebooks: scripts run on tiny models and synthetic sweeps, and each .ipynb is its executed script."""

import json
import runpy
import shutil
from dataclasses import asdict
from pathlib import Path

import jupytext
import nbformat
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dalle import checkpoint
from dalle.cli.sweeps import ablation_jobs
from dalle.data.blocks import BlocksConfig
from dalle.training import state_files
from dalle.training.job import FORMAT, Job
from dalle.weights_files import WEIGHTS

FOLDER = Path(__file__).parents[1] / "notebooks"
SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))
EACH = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
BLOCKS = BlocksConfig(image_size=8, val=16, novel=16)


@pytest.fixture
def trained(checkpoints, tmp_path):
    """Return the tiny models, recorded as trained on tiny images of `blocks`."""
    folder = shutil.copytree(checkpoints, tmp_path / "trained")
    path = folder / "transformer" / checkpoint.CONFIG
    content = json.loads(path.read_text())
    content["meta"]["data"] = asdict(BLOCKS)
    path.write_text(json.dumps(content))
    return folder


@pytest.fixture
def swept(tmp_path):
    """Write all runs of two sweeps: of the KL weight, and of sizes with a loss of 2 / parameters^0.1."""
    for name in ("kl_weight", "scaling"):
        for config in ablation_jobs(name):
            parameters = 100 * getattr(config.stage.model, "depth", 1) * config.stage.model.width
            metrics = {metric: 1.0 + config.seed for metric in config.ablation.metrics}
            if name == "scaling":
                metrics = {"image": 2 * parameters**-0.1, "text": 1.0}
            leave(tmp_path, Job.from_config(config), parameters, metrics)
    return tmp_path / "ablation"


def leave(out: Path, job: Job, parameters: int, metrics: dict[str, float]) -> None:
    """Write the folder of a job that trained for ten updates."""
    folder = job.folder(out)
    folder.mkdir(parents=True)
    written = {"format": FORMAT, **vars(job), "status": "finished", "error": ""}
    (folder / "job.json").write_text(json.dumps(written))
    lines = [{"step": step, "split": "val", **metrics} for step in (5, 10)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    state_files.save_state(folder, 10, {}, {"identity": {"stage": {"steps": 10}, "seed": job.seed}})
    save_file({"weight": torch.zeros(parameters)}, folder / WEIGHTS)


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs a notebook's script and returns its variables and output."""
    grad, close = torch.is_grad_enabled(), pytest.importorskip("matplotlib.pyplot").close
    monkeypatch.setenv("MPLBACKEND", "Agg")

    def run(name, **environment):
        for key, value in environment.items():
            monkeypatch.setenv(key, str(value))
        defined = runpy.run_path(str(FOLDER / f"{name}.py"))
        return defined, capsys.readouterr().out

    yield run
    torch.set_grad_enabled(grad)
    close("all")


def test_codebook_notebook_compares_hard_and_soft_codes(run, trained):
    defined, printed = run("01_codebook", DALLE_CHECKPOINT=trained)
    assert "13 codes, of which these 128 pictures use" in printed
    assert defined["errors"][0] == pytest.approx(defined["error"](defined["hard"], defined["apart"]), nan_ok=True)
    assert len(defined["relaxed"]) == 6


def test_sampling_notebook_compares_settings_and_explains_missing_guidance(run, trained):
    defined, printed = run("02_sampling", DALLE_CHECKPOINT=trained, DALLE_CANDIDATES=4)
    assert "needs a transformer that was trained with empty captions" in printed
    assert defined["by_temperature"][0.0][1] == 0  # greedy sampling has no variety
    assert defined["by_temperature"][1.0][1] > 0
    assert len(defined["canvases"]) == len(defined["rows"]) == 5
    measures_the_named_colour(defined["colour_share"])


def measures_the_named_colour(colour_share) -> None:
    painted = {"red": (220, 30, 30), "yellow": (240, 200, 30), "green": (40, 160, 60), "blue": (40, 90, 200)}
    for colour, rgb in painted.items():
        image = Image.new("RGB", (8, 8), "white")
        image.paste(rgb, (0, 0, 8, 4))
        shares = {name: colour_share([image], name).item() for name in painted}
        assert shares == {name: float(name == colour) for name in painted}
    assert colour_share([Image.new("RGB", (8, 8), "white")], "red").item() == 0


def test_ablations_notebook_plots_finished_and_lists_missing_runs(run, swept, trained):
    defined, printed = run("03_ablations", DALLE_SWEEPS=swept, DALLE_CHECKPOINT=trained)
    assert [sweep.ablation.name for sweep in defined["finished"]] == ["kl_weight", "scaling"]
    assert "gain: " in printed and "python train.py -m +ablation=gain" in printed
    jobs = len(ablation_jobs("kl_weight"))
    assert f"{jobs} of {jobs} runs" in printed


def test_scaling_law_notebook_fits_and_predicts_the_largest(run, swept, trained):
    defined, printed = run("04_scaling", DALLE_SWEEPS=swept, DALLE_CHECKPOINT=trained)
    assert defined["law"].exponent == pytest.approx(-0.1)
    assert "the prediction is +0.0% off" in printed or "the prediction is -0.0% off" in printed


def test_missing_sweeps_show_the_command(run, trained, tmp_path):
    _, printed = run("04_scaling", DALLE_SWEEPS=tmp_path / "nothing", DALLE_CHECKPOINT=trained)
    assert "python train.py -m +ablation=scaling dvae=outputs/demo/dvae" in printed


@pytest.mark.slow
def test_fine_tuning_notebook_trains_from_a_checkpoint_and_from_scratch(run, checkpoints):
    model, _ = checkpoint.read_config(checkpoints / "transformer", "transformer")
    names = ("width", "depth", "heads", "kernel", "text_positions", "text_vocabulary", "activation")
    sizes = [f"stage.model.{name}={model[name]}" for name in names]
    sizes += [f"stage.model.patterns=[{','.join(model['patterns'])}]", "data.image_size=8", "preset=tiny"]
    environment = {"DALLE_CHECKPOINT": checkpoints, "DALLE_SIZES": json.dumps(sizes), "DALLE_UPDATES": 12}
    defined, printed = run("05_fine_tuning", **environment)
    assert "held-out image loss after 12 updates" in printed
    assert [line["step"] for line in defined["tuned"]] == [line["step"] for line in defined["scratch"]]
    assert len(defined["rows"]) == 8


def test_notebooks_are_numbered():
    assert [script.stem[:2] for script in SCRIPTS] == ["01", "02", "03", "04", "05"]


@EACH
def test_notebook_contains_its_script_and_output(script):
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    cells = jupytext.read(script).cells
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in cells
    ], "run: make notebooks"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)


def test_the_docs_show_the_last_picture_of_the_fine_tuning_notebook():
    notebook = nbformat.read(FOLDER / "05_fine_tuning.ipynb", as_version=4)
    shown = runpy.run_path(str(FOLDER / "make.py"))["last_picture"](notebook)
    assert (FOLDER.parent / "docs" / "fine-tuning.png").read_bytes() == shown, "run: make notebooks"


@EACH
def test_notebook_is_small(script):
    assert script.with_suffix(".ipynb").stat().st_size < 300_000
