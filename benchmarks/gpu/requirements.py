"""Wheelhouse: collect wheels on a machine with network access, and install missing packages on one without.

python -m benchmarks.gpu.requirements collect wheels 3.12
python -m benchmarks.gpu.requirements install wheels .gpu-site
"""

import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    from packaging.requirements import Requirement
    from packaging.tags import sys_tags
    from packaging.utils import canonicalize_name, parse_wheel_filename
except ImportError:  # only pip is installed
    from pip._vendor.packaging.requirements import Requirement
    from pip._vendor.packaging.tags import sys_tags
    from pip._vendor.packaging.utils import canonicalize_name, parse_wheel_filename

FILE = Path(__file__).with_suffix(".txt")
LIMIT = 40 * 10**6  # maximum bytes of a wheelhouse
GLIBC = (39, 35, 34, 31, 28, 27, 24, 17)  # glibc minor versions of wheels; pip requires an explicit list


def requirements() -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in FILE.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def collect(folder: Path, python_version: str) -> None:
    """Fill `folder` with wheels for CPython `python_version` on x86-64 Linux.

    Raises ValueError if they take more than `LIMIT` bytes, and CalledProcessError if pip fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    pip = [sys.executable, "-m", "pip"]
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in GLIBC]
    platforms += ["--platform=manylinux2014_x86_64", "--platform=manylinux1_x86_64"]
    target = ["--only-binary=:all:", f"--python-version={python_version}", "--implementation=cp", *platforms]
    for requirement in requirements():
        wanted = str(requirement)
        if requirement.name.startswith("antlr4"):  # pure Python: a wheel built here works on all machines
            subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, wanted], check=True)
        else:
            subprocess.run([*pip, "download", "--quiet", "--no-deps", *target, "--dest", folder, wanted], check=True)
    size = sum(wheel.stat().st_size for wheel in folder.glob("*.whl"))
    print(f"{folder}: {len(list(folder.glob('*.whl')))} wheels for Python {python_version}, {size / 1e6:.1f} MB")
    if size > LIMIT:
        raise ValueError(
            f"{folder} takes {size / 1e6:.1f} MB, more than {LIMIT / 1e6:.0f}: remove a requirement or raise the limit"
        )


def missing() -> list[Requirement]:
    """Return the requirements that are not met by this interpreter."""
    return [requirement for requirement in requirements() if not _is_met(requirement)]


def install(wheelhouse: Path, site: Path) -> list[str]:
    """Install missing requirements into the folder `site`, which must be on PYTHONPATH.

    Returns a sentence for each requirement that could not be installed.
    """
    wheels = sorted(wheelhouse.glob("*.whl"))
    chosen, problems = [], []
    for requirement in missing():
        named = [wheel for wheel in wheels if _name_of(wheel) == canonicalize_name(requirement.name)]
        fitting = [wheel for wheel in named if _fits_here(wheel)]
        if fitting:
            chosen.append(fitting[-1])
        elif named:
            problems.append(
                f"{requirement.name}: {named[-1].name} is for another Python than {_python()}; on a machine with a "
                f"network, run make wheels PYTHON_VERSION={_python()}"
            )
        else:
            problems.append(
                f"{requirement.name}: neither installed nor in {wheelhouse}; on a machine with a network, run "
                f"make wheels PYTHON_VERSION={_python()}"
            )
    if chosen:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*pip, "--upgrade", "--target", site, *chosen], check=True)
    return problems


def _is_met(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False


def _name_of(wheel: Path) -> str:
    return parse_wheel_filename(wheel.name)[0]


def _fits_here(wheel: Path) -> bool:
    return not parse_wheel_filename(wheel.name)[3].isdisjoint(sys_tags())


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def main(arguments: Iterable[str]) -> None:
    action, *rest = arguments
    if action == "collect":
        collect(Path(rest[0]), rest[1])
    else:
        for problem in install(Path(rest[0]), Path(rest[1])):
            print(problem)


if __name__ == "__main__":
    main(sys.argv[1:])
