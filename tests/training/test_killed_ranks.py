"""A sharded run of two ranks that is killed again and again ends with the same bits as an undisturbed one."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from line_stage import CPU, BlockStage, LineConfig, fit

from dalle import checkpoint, distributed
from dalle.training.ema import EMAConfig
from dalle.training.sharding import init_mesh
from dalle.training.state import load_state
from dalle.weights_files import has_weights, read_weights

KILLS = int(os.environ.get("DALLE_TEST_KILLS", 0))  # 20 are what it should survive; 5 take minutes on two cores
STEPS = int(os.environ.get("DALLE_TEST_STEPS", max(400, 40 * KILLS)))  # fewer on a busy machine
# saves take most of the time, so most kills interrupt one; with async_save also while another update is computed
CONFIG = replace(
    LineConfig(),
    steps=STEPS,
    ema=EMAConfig(0.9),
    accumulate=2,
    log_every=10,
    validate_every=10,
    preview_every=0,
    save_every=2,
    keep_every=50,
    keep_best=True,
    async_save=True,
)


def train_rank(folder: Path) -> None:
    distributed.init_process_group("cpu")
    fit(folder, CONFIG, BlockStage(CONFIG), mesh=init_mesh("fsdp", None, CPU))
    distributed.destroy_process_group()


def start(folder: Path) -> list[subprocess.Popen]:
    """Start both ranks. Without torchrun, which would end the rank that is left."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "OMP_NUM_THREADS": "1"}
    search = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [
        sys.executable,
        "-c",
        "import sys, pathlib, test_killed_ranks as t; t.train_rank(pathlib.Path(sys.argv[1]))",
    ]
    return [
        subprocess.Popen(
            [*command, str(folder)],
            env={**os.environ, **address, "PYTHONPATH": search, "WORLD_SIZE": "2", "RANK": str(rank)},
            stderr=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]


def assert_everything_loads(folder: Path) -> None:
    for each in (folder, *folder.glob("checkpoints/*"), *folder.glob("best")):
        if has_weights(each) and not each.name.startswith("."):
            checkpoint.read_config(each, "line")
            assert all(tensor.isfinite().all() for tensor in read_weights(each).values())
    state = load_state(folder)
    assert state is not None
    assert all(tensor.isfinite().all() for tensor in state[1].values())


@pytest.mark.slow
@pytest.mark.skipif(not KILLS, reason="takes minutes: set DALLE_TEST_KILLS, to 20, or 5")
def test_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert [each.wait(600) for each in start(undisturbed)] == [0, 0]
    generator = random.Random(0)
    for _ in range(KILLS):
        before = checkpoint.newest_state(killed)
        processes = start(killed)
        deadline = time.monotonic() + 300
        while checkpoint.newest_state(killed) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 1))
        victim = generator.randrange(2)
        assert processes[victim].poll() is None, "the run ended before it was killed: raise steps"
        processes[victim].send_signal(signal.SIGKILL)
        try:
            processes[1 - victim].wait(60)  # it loses the connection
        except subprocess.TimeoutExpired:
            processes[1 - victim].kill()
        for each in processes:
            each.wait()
        assert_everything_loads(killed)
    assert [each.wait(600) for each in start(killed)] == [0, 0]
    assert_everything_loads(killed)
    folders = [".", "best", *(f"checkpoints/{step:08d}" for step in range(50, STEPS + 1, 50))]
    assert [checkpoint.digest(killed / each) for each in folders] == [
        checkpoint.digest(undisturbed / each) for each in folders
    ]
