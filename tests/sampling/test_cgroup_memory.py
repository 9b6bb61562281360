import math
from pathlib import Path

import pytest

from dalle.sampling.cgroup_memory import free_in_cgroups

GB = 10**9


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")


@pytest.fixture
def membership(tmp_path) -> Path:
    return tmp_path / "cgroup"


def test_the_tightest_limit_of_a_job_and_its_step_counts(tmp_path, membership):
    """As SLURM sets them in version 2. File pages of the job count as free."""
    membership.write_text("0::/slurm/job_7/step_0\n")
    write(tmp_path / "slurm/job_7/step_0", {"memory.max": "max", "memory.current": "5", "memory.stat": "anon 5"})
    files = {"memory.max": str(8 * GB), "memory.current": str(6 * GB), "memory.stat": f"anon 1\ninactive_file {3 * GB}"}
    write(tmp_path / "slurm/job_7", files)
    write(tmp_path / "slurm", files | {"memory.max": str(64 * GB)})
    assert free_in_cgroups(membership, tmp_path) == 5 * GB


def test_a_container_of_version_1_sees_its_own_group_as_the_root(tmp_path, membership):
    membership.write_text("5:cpu,cpuacct:/docker/1f\n4:memory:/docker/1f\n0::/docker/1f\n")
    files = {"memory.limit_in_bytes": str(4 * GB), "memory.usage_in_bytes": str(GB), "memory.stat": "cache 3"}
    write(tmp_path / "memory", files)
    assert free_in_cgroups(membership, tmp_path) == 3 * GB
    write(tmp_path / "memory", {"memory.usage_in_bytes": str(5 * GB)})  # above the limit for a moment
    assert free_in_cgroups(membership, tmp_path) == 0


def test_no_limit_is_infinite(tmp_path, membership):
    assert free_in_cgroups(membership, tmp_path) == math.inf
    membership.write_text("0::/\n4:memory:/../..\nnonsense\n")
    write(tmp_path, {"memory.max": "max"})
    assert free_in_cgroups(membership, tmp_path) == math.inf
