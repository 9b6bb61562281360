"""The wheel has the package, its configs and weights, and `dalle` works from it in any folder."""

import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image

from dalle.cli import config, main

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def dalle(wheel, tmp_path_factory):
    """Function that runs `dalle` with the installed wheel in an empty folder. Returns (exit status, output)."""
    place, folder = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("elsewhere")
    install = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(place), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)

    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "dalle", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(place)}  # precedes the editable installation
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    run.folder = folder
    return run


@pytest.mark.slow
def test_the_wheel_has_configs_and_nothing_else_beside_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"dalle"}
    configs = [path for path in (ROOT / "configs").rglob("*") if path.is_file()]
    assert {f"dalle/{path.relative_to(ROOT)}" for path in configs} <= names
    weights = [path for path in (ROOT / "dalle" / "weights").rglob("*") if path.is_file()]
    assert {str(path.relative_to(ROOT)) for path in weights} <= names


@pytest.mark.slow
def test_an_installed_wheel_trains_and_samples_in_any_folder(dalle):
    tiny = ["data=blocks", "data.image_size=32", "data.train=16", "data.val=4", "preset=tiny", "wandb.mode=disabled"]
    small = ("steps=2", "workers=0", "batch_size=4", "validation_images=4")
    short = [f"stage.{stage}.{setting}" for stage in ("dvae", "clip", "transformer") for setting in small]
    short += [f"stage.{stage}.tokenizer_records=16" for stage in ("clip", "transformer")]
    status, printed = dalle("train", "stage=all", "run=mine", *tiny, *short)
    assert status == 0, printed
    settings = ["checkpoint=outputs/mine", "caption=a red circle", "candidates=2", "keep=1", "out=drawn"]
    status, printed = dalle("sample", *settings)
    assert status == 0, printed
    assert "drawn" in printed
    status, printed = dalle("sample", "caption=a red apple", "candidates=2", "keep=1", "out=apple")  # with its model
    assert status == 0, printed
    (image,) = (dalle.folder / "apple").glob("a-red-apple-*.png")
    assert Image.open(image).size == (128, 128)


@pytest.mark.slow
def test_a_wheel_in_an_empty_environment_draws_in_an_empty_folder(wheel, tmp_path):
    """Of this environment only pip is used: it installs the wheel and what it depends on, as the Dockerfile does."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "environment")], check=True)
    programs, folder = tmp_path / "environment" / "bin", tmp_path / "empty"
    folder.mkdir()
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python")]
    probe = subprocess.run([*pip, "download", "--quiet", "--no-deps", "--dest", str(tmp_path), "einops"], cwd=folder)
    if probe.returncode:
        pytest.skip("no package registry can be reached")
    torch = f"torch=={version('torch').partition('+')[0]}"
    constraint = ["--constraint", str(ROOT / "constraints.txt")]
    extras = re.search(r"ARG EXTRAS=(\S+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    # bytecode of the few modules that are imported is made then
    install = ["install", "--quiet", "--no-compile", f"{wheel}[{extras[1]}]", torch, *constraint]
    subprocess.run([*pip, *install], cwd=folder, check=True)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(programs / "dalle"), "sample", "caption=a red apple", "candidates=2", "keep=1", "out=apple"]
    done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (image,) = (folder / "apple").glob("a-red-apple-*.png")
    assert Image.open(image).size == (128, 128)


def test_the_command_lists_and_runs_the_commands(monkeypatch, capsys):
    assert set(main.DESCRIPTIONS) == {*config.COMMANDS, "verify"}
    monkeypatch.setattr(sys, "argv", ["dalle"])
    main.main()
    printed = capsys.readouterr().out
    assert all(f"dalle {name} " in printed for name in config.COMMANDS)
    monkeypatch.setattr(sys, "argv", ["dalle", "train", "--help"])
    main.main()
    assert capsys.readouterr().out.startswith("usage: dalle train [setting=value ...]")
    monkeypatch.setattr(sys, "argv", ["dalle", "evaluate", "metrics=[fid]", "data=blocks"])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 2


def test_a_mistyped_command_is_corrected(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dalle", "trian"])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 2
    assert "there is no command 'trian'; did you mean dalle train?" in capsys.readouterr().err
