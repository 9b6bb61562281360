"""Run a script on several ranks with the environment of torchrun, forked from a process that has imported torch."""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import time
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path

SECONDS = 600  # for all ranks
# imported once, by the process from which the ranks are forked: imports would take most of their time.
# tests/training/test_monitor_two_ranks.py starts ranks with torchrun itself
IMPORTS = ["torch._dynamo", "torch.distributed.fsdp", "wandb", "dalle.stages", "dalle.training.loop"]
CONTEXT = multiprocessing.get_context("forkserver")


def torchrun(ranks: int, *arguments: str | Path, search: tuple[Path, ...] = ()) -> None:
    """Run a script with `arguments` on `ranks` ranks, with `search` first on the import path; raises if it fails."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    common |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    CONTEXT.set_forkserver_preload(IMPORTS)
    with tempfile.TemporaryDirectory() as folder, one_thread():
        printed = [Path(folder) / f"{rank}.log" for rank in range(ranks)]
        processes = []
        try:
            for rank, path in enumerate(printed):
                environment = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                given = environment, [*map(str, search), *sys.path], [*map(str, arguments)], path
                processes.append(CONTEXT.Process(target=run_rank, args=given))
                processes[-1].start()
            statuses = wait(processes)
        finally:
            for process in processes:
                process.kill()
                process.join()
        said = [f"rank {rank}: {path.read_text()[-5000:]}" for rank, path in enumerate(printed) if path.exists()]
    assert statuses == [0] * ranks, "\n".join([f"exit statuses {statuses}", *said])


def wait(processes: list[ForkServerProcess]) -> list[int | None]:
    """Wait until all processes have ended, or one has failed. Returns their exit statuses, None if still running."""
    deadline = time.monotonic() + SECONDS
    while any(process.exitcode is None for process in processes):
        if any(process.exitcode for process in processes) or time.monotonic() > deadline:
            time.sleep(1)  # the other ranks may say more about it
            break
        time.sleep(0.02)
    return [process.exitcode for process in processes]


@contextmanager
def one_thread():
    """Context for the start of the process that is forked, which reads the number of threads when it imports torch."""
    changed = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    changed["PYTHONPATH"] = os.pathsep.join(sys.path)
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def run_rank(environment: dict[str, str], path: list[str], arguments: list[str], printed: Path) -> None:
    """Run a script in this process, with its output in the file `printed`."""
    output = os.open(printed, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:], sys.argv[:] = path, arguments
    runpy.run_path(arguments[0], run_name="__main__")
