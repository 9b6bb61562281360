"""The command `dalle studio` in a process of its own, for tests in a browser."""

import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[3]
LINK = re.compile(r"http://127\.0\.0\.1:\d+/#token=\S+")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class StudioProcess:
    """Running studio; `link` is the one that it printed. A context manager that stops it."""

    def __init__(
        self, checkpoint: Path | str, settings: Sequence[str] = (), port: int | None = None, folder: Path | None = None
    ) -> None:
        """folder: where the studio is started; None: where the tests were."""
        self.command = [sys.executable, "-m", "dalle", "studio", f"checkpoint={checkpoint}", *settings]
        self.port, self.folder = port or free_port(), folder
        self.link = ""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self, token: str = "") -> "StudioProcess":
        """Start the studio, with a token that no earlier one had unless `token` is given, and wait for its link."""
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "DALLE_STUDIO_TOKEN": token or secrets.token_urlsafe(32),
        }
        self.process = subprocess.Popen(
            [*self.command, f"port={self.port}"],
            env=environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        printed = []
        for line in self.process.stdout:
            printed.append(line)
            if found := LINK.search(line):
                self.link = found.group()
                return self
        raise AssertionError(f"the studio ended with {self.process.wait()}: {''.join(printed)}")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> "StudioProcess":
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.stop()
