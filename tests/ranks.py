"""Start a script on several ranks, as torchrun does."""

import os
import subprocess
import sys
from pathlib import Path


def torchrun(ranks: int, *arguments: str | Path, search: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a script with `arguments` on `ranks` ranks, with `search` first on the import path; raises if it fails."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([*map(str, search), *sys.path]),
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    run = subprocess.run([*launch, *map(str, arguments)], env=environment, timeout=600, capture_output=True, text=True)
    assert not run.returncode, run.stderr[-5000:]
    return run
