"""SLURM: the batch script with stand-ins for SLURM's commands, and sweeps with submitit."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import hydra
import pytest
import torch

from dalle.cli.config import compose, hydra_initialized, register

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "slurm" / "train.sbatch"
TINY = ["stage=dvae", "data=blocks", "preset=tiny", "data.image_size=16", "data.train=32", "data.val=8"]
TINY += ["stage.batch_size=4", "stage.validation_images=4", "stage.model.width=8", "stage.model.vocabulary=8"]
TINY += ["stage.workers=0", "wandb.mode=disabled", "device=cpu"]

needs_submitit = pytest.mark.skipif(
    find_spec("submitit") is None, reason="needs hydra-submitit-launcher: pip install 'dalle[slurm]'"
)


def environment(**changes) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **changes}


def test_the_script_is_valid_bash():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def test_the_command_of_the_script_composes():
    slurm = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NUM_NODES": "4", "SLURM_GPUS_ON_NODE": "8", "DRY_RUN": "1"}
    command = ["bash", str(SCRIPT), "stage=transformer", "dvae=outputs/dvae/paper", "run=the paper"]
    printed = subprocess.run(command, env=environment(**slurm), check=True, capture_output=True, text=True).stdout
    words = shlex.split(printed)
    assert words[:3] == [sys.executable, "-m", "torch.distributed.run"]
    options = dict(zip(words[3:-4:2], words[4:-4:2], strict=True))
    assert (options["--nnodes"], options["--nproc-per-node"], options["--rdzv-id"]) == ("4", "8", "4242")
    assert options["--rdzv-endpoint"] == "localhost:24242"
    config = compose("train", words[words.index("train.py") + 1 :])
    assert (config.stage.name, config.run) == ("transformer", "the paper")


def test_the_options_of_torchrun_exist():
    from torch.distributed.run import get_args_parser

    command = ["bash", str(SCRIPT), "stage=dvae"]
    printed = subprocess.run(command, env=environment(DRY_RUN="1"), check=True, capture_output=True, text=True).stdout
    parsed = get_args_parser().parse_args(shlex.split(printed)[3:])
    assert (parsed.training_script, parsed.training_script_args) == ("train.py", ["stage=dvae"])


def test_files_that_the_script_names_exist():
    paths = re.findall(r"(?:dalle|docs|tools)/[\w/.]+\w", SCRIPT.read_text())
    assert "dalle/signals.py" in paths and all((ROOT / path).is_file() for path in paths)


def test_ranks_have_time_to_save_after_preemption(tmp_path):
    (tmp_path / "srun").write_text('#!/usr/bin/env bash\necho "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT s"\n')
    (tmp_path / "srun").chmod(0o755)
    settings = environment(PATH=f"{tmp_path}:{os.environ['PATH']}", GPUS="1", GRACE_SECONDS="77")
    done = subprocess.run(["bash", str(SCRIPT)], env=settings, check=True, capture_output=True, text=True)
    assert done.stdout == "77 s\n"


@pytest.mark.slow
def test_the_job_saves_before_the_time_limit_and_resumes_when_it_is_queued_again(tmp_path):
    """srun runs the command here, scancel signals its processes as SLURM does, and scontrol notes what it is asked."""
    tools = tmp_path / "bin"
    tools.mkdir()
    scripts = {
        "srun": 'while [[ "$1" == --* ]]; do shift; done\necho $$ > srun.pid\nexec "$@"',
        # all processes of the step: the launcher, and its children
        "scancel": 'pid=$(cat srun.pid); kill -USR1 $(pgrep -P "$pid") "$pid"',
        "scontrol": 'echo "$@" >> scontrol.log',
    }
    for name, text in scripts.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tools / name).chmod(0o755)
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    options = [*TINY, "stage.steps=400", "stage.save_every=0", "stage.log_every=1", "run=long"]
    settings = environment(PATH=f"{tools}:{os.environ['PATH']}", SLURM_JOB_ID="7", GPUS="1")
    command = ["bash", str(SCRIPT), *options]
    log = tmp_path / "outputs" / "dvae" / "long" / "metrics.jsonl"

    with (tmp_path / "slurm.log").open("w") as output:
        job = subprocess.Popen(command, cwd=tmp_path, env=settings, stdout=output, stderr=output)
        while job.poll() is None and not (log.exists() and log.read_text().count("\n") > 5):
            time.sleep(0.2)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=120) != 0, (tmp_path / "slurm.log").read_text()
    assert "the time limit is near" in (tmp_path / "slurm.log").read_text()
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7\n"
    (saved,) = (log.parent / "state").iterdir()
    assert 5 < int(saved.name) < 400

    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7\n"  # a finished run is not queued again
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if '"train"' in line]
    assert steps == list(range(1, 401))


@needs_submitit
def test_the_launcher_for_slurm_composes():
    register()
    with hydra_initialized():
        options = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=1"]
        options += ["+hydra.launcher.additional_parameters.requeue=true"]
        composed = hydra.compose("train", [*TINY, *options], return_hydra_config=True)
    launcher = composed.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.partition, launcher.gpus_per_node, launcher.additional_parameters) == ("gpu", 1, {"requeue": True})


@needs_submitit
@pytest.mark.slow
def test_a_sweep_in_processes_of_its_own_equals_an_ordinary_one(train, tmp_path):
    """Names of runs, losses and the error of a failed job."""
    options = [option for option in TINY if not option.startswith("stage.batch_size")]
    sweep = [*options, "stage.steps=2", "stage.log_every=1", "run=s", "seed=0", "stage.batch_size=4,3,0"]
    losses, errors = [], []
    for name in ("ordinary", "submitit"):
        if name == "ordinary":
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # as the processes have
            status, error = train("-m", *sweep, "out=ordinary")
            torch.set_num_threads(threads)
        else:
            command = [sys.executable, str(ROOT / "train.py"), "-m", "hydra/launcher=submitit_local", *sweep]
            command += ["out=submitit"]
            done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=500)
            status, error = done.returncode, done.stderr
        assert status == 2, error
        errors.append(error)
        runs = sorted((tmp_path / name / "dvae").iterdir())
        assert [run.name for run in runs] == ["s-batch_size_3", "s-batch_size_4"]
        lines = [json.loads(line) for run in runs for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses.append([line.get("loss", line.get("nll")) for line in lines])
    assert losses[0] == losses[1]
    assert all("batch_size=0 must be at least 1" in error for error in errors)


def test_a_missing_launcher_is_explained(command, monkeypatch):
    _, status, error = command("-m", "hydra/launcher=submitit_nowhere", "seed=1,2")
    assert status == 2
    assert (
        error
        == "hydra/launcher=submitit_nowhere needs hydra-submitit-launcher: install it with pip install 'dalle[slurm]'\n"
    )
