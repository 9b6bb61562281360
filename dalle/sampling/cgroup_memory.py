"""Memory that the limits of a container or a SLURM job leave: Linux control groups (cgroups), versions 1 and 2."""

import math
from collections.abc import Iterator
from pathlib import Path

MEMBERSHIP, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# files of a group: its limit and its use; entry of memory.stat: file pages, which the kernel drops when it needs room
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = ("memory.max", "memory.current", "inactive_file")


def free_in_cgroups(membership: Path = MEMBERSHIP, mount: Path = MOUNT) -> float:
    """Return the bytes that this process may still take by the limits of its cgroups; infinity if there are none.

    membership: file that lists the groups of the process.
    mount: folder in which the groups are mounted.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux
        return math.inf
    free = [math.inf]
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if not controllers:
            free += [_free(group, *VERSION_2) for group in _with_parents(mount, path)]
        elif "memory" in controllers.split(","):
            free += [_free(group, *VERSION_1) for group in _with_parents(mount / "memory", path)]
    return min(free)


def _with_parents(mount: Path, path: str) -> Iterator[Path]:
    """Yield the folders of a group and of the groups around it, whose limits hold too."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for length in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:length])


def _free(group: Path, limit: str, usage: str, reclaimable: str) -> float:
    try:
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / usage).read_text()) - int(statistics.get(reclaimable, 0))
        return max(0, int((group / limit).read_text()) - used)
    except (OSError, ValueError):  # no such group here, or no limit: "max"
        return math.inf
