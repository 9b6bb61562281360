"""A sharded run of two ranks that is killed again and again ends with the same bits as an undisturbed one."""

import multiprocessing
import os
import random
import socket
import sys
import time
from dataclasses import dataclass, replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from line_stage import CPU, BlockStage, LineConfig, fit
from saved_state import load_state

from dalle import checkpoint, distributed
from dalle.training import state_files
from dalle.training.ema import EMAConfig
from dalle.training.sharding import init_mesh
from dalle.weights_files import has_weights, read_weights

KILLS = int(os.environ.get("DALLE_TEST_KILLS", 2))  # 5 take a minute on two idle cores; 20 are what it should survive
STEPS = int(os.environ.get("DALLE_TEST_STEPS", max(40, 8 * KILLS)))  # a kill advances about three
LIMIT = 600  # seconds for anything that a rank does
# imported once, by the process from which the ranks are forked: imports would take most of a start
IMPORTS = ["torch._dynamo", "torch.distributed.fsdp", "wandb", "dalle.training.loop", "dalle.training.sharded_state"]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(IMPORTS)
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
    keep_every=20,
    keep_best=True,
    async_save=True,
)


@dataclass(frozen=True)
class Durations:
    """Seconds that an undisturbed run takes."""

    first_state: float  # from the start until the first state is saved
    state: float  # from one state to the next


def train_rank(rank: int, port: int, folder: Path) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # the rank that is left complains at length
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port), WORLD_SIZE="2", RANK=str(rank))
    distributed.init_process_group("cpu")
    fit(folder, CONFIG, BlockStage(CONFIG, depth=1), mesh=init_mesh("fsdp", None, CPU))
    distributed.destroy_process_group()


def start(folder: Path) -> list[ForkServerProcess]:
    """Start both ranks. Without torchrun, which would end the rank that is left."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ranks = [CONTEXT.Process(target=train_rank, args=(rank, port, folder), daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    return ranks


def wait_for_state(folder: Path, ranks: list[ForkServerProcess]) -> None:
    """Wait until the ranks have saved another state."""
    before, deadline = state_files.newest_state(folder), time.monotonic() + LIMIT
    while state_files.newest_state(folder) == before:
        assert all(process.exitcode is None for process in ranks), (
            "the run ended before it was killed: raise DALLE_TEST_STEPS"
        )
        assert time.monotonic() < deadline, f"no state was saved for {LIMIT} seconds"
        time.sleep(0.002)


def finish(ranks: list[ForkServerProcess]) -> None:
    for process in ranks:
        process.join(LIMIT)
    assert [process.exitcode for process in ranks] == [0, 0]


def run_undisturbed(folder: Path) -> Durations:
    imports = CONTEXT.Process(target=os.getpid)  # starts the process from which the ranks are forked
    imports.start()
    imports.join()
    begin = time.monotonic()
    ranks = start(folder)
    wait_for_state(folder, ranks)
    first = time.monotonic()
    finish(ranks)
    end = time.monotonic()
    return Durations(first - begin, (end - first) / (STEPS // CONFIG.save_every))


def kill_at_random(folder: Path, durations: Durations, generator: random.Random) -> None:
    """Start the run and kill one rank, while it is loading, or after it has saved up to two more states."""
    ranks = start(folder)
    states = generator.randrange(4)  # a quarter of the kills may come while the run is loading
    if states == 0:
        moment = durations.first_state
    else:
        for _ in range((states + 1) // 2):
            wait_for_state(folder, ranks)
        moment = durations.state
    time.sleep(generator.uniform(0, moment))
    assert all(process.exitcode is None for process in ranks), (
        "the run ended before it was killed: raise DALLE_TEST_STEPS"
    )
    victim = generator.randrange(2)
    ranks[victim].kill()
    ranks[1 - victim].join(10)  # it loses the connection, unless it waits for one
    for process in ranks:
        process.kill()
        process.join()


def unfinished(folder: Path) -> set[str]:
    """Return the names of files and folders that were being written."""
    return {str(path.relative_to(folder)) for path in folder.rglob(".*.part")}


def assert_everything_loads(folder: Path) -> None:
    for path in (folder, *folder.glob("checkpoints/*"), *folder.glob("best")):
        if has_weights(path) and not path.name.startswith("."):
            checkpoint.read_config(path, "line")
            assert all(tensor.isfinite().all() for tensor in read_weights(path).values())
    state = load_state(folder)
    if state is not None:  # None: killed before the first one was complete
        assert all(tensor.isfinite().all() for tensor in state[1].values())


@pytest.mark.slow
def test_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # of the process that the ranks are forked from
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    durations = run_undisturbed(undisturbed)
    print(f"{STEPS} steps; {durations}")
    generator = random.Random(0)
    for number in range(KILLS):
        kill_at_random(killed, durations, generator)
        assert_everything_loads(killed)
        state = state_files.newest_state(killed)
        print(f"kill {number + 1}: state {state and state.name}, unfinished: {sorted(unfinished(killed))}")
    finish(start(killed))
    assert_everything_loads(killed)
    folders = [".", "best", *(f"checkpoints/{step:08d}" for step in range(20, STEPS + 1, 20))]
    assert [checkpoint.digest(killed / name) for name in folders] == [
        checkpoint.digest(undisturbed / name) for name in folders
    ]
    assert not unfinished(killed)
