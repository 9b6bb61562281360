"""Download pinned packages of the npm registry, and read the files in them.

Each package is pinned by name, version and SHA-256 digest. `npm pack` downloads it, so that the registry and the proxy
of the machine's npm configuration are used.
"""

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TIMEOUT = 900  # seconds for one download


class PackageError(Exception):
    """Raised if a package cannot be downloaded, or is not the one that is pinned. The message states the remedy."""


@dataclass(frozen=True)
class Package:
    """One npm package, pinned by name, version and SHA-256 digest."""

    name: str
    version: str
    sha256: str  # of the .tgz file

    @property
    def file(self) -> str:
        """File name that `npm pack` gives the package."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def url(self) -> str:
        """Package URL (ECMA-427), which names the .tgz file in npm's registry."""
        return f"pkg:npm/{self.name.replace('@', '%40')}@{self.version}"

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


OPENMOJI = Package("openmoji", "17.0.0", "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68")
FLUENT_3D = Package(
    "@lobehub/fluent-emoji-3d", "1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"
)
ICONIFY = Package("@iconify/json", "2.2.535", "1a545f86fa224d6531d8fb101dcbe83aac2b28689a21cbed6fc68318a5af4d91")
EMOJIBASE = Package("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")
PACKAGES = (EMOJIBASE, OPENMOJI, FLUENT_3D, ICONIFY)


def download(package: Package, folder: Path) -> Path:
    """Return the path of the package's .tgz file in `folder`, after downloading it if it is not there yet.

    Raises PackageError if npm is missing, the registry does not answer, or the digest is not the pinned one. A file
    with another digest is never kept.
    """
    path = folder / package.file
    if path.is_file():
        if digest(path) == package.sha256:
            return path
        path.unlink()  # an interrupted download, or another version
    npm = shutil.which("npm")
    if npm is None:
        raise PackageError(
            "npm is not installed, and it downloads the packages of drawings. Install Node.js (Debian: apt install "
            "npm; macOS: brew install node), or copy a finished folder from another machine"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        command = [npm, "pack", str(package), "--silent", "--pack-destination", temporary]
        try:
            process = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            raise PackageError(f"the npm registry sent no complete {package} in {TIMEOUT} s; try again") from None
        downloaded = Path(temporary, package.file)
        if process.returncode or not downloaded.is_file():
            reason = " ".join((process.stderr or process.stdout).split())[-300:] or f"npm returned {process.returncode}"
            raise PackageError(f"the npm registry did not give {package}: {reason}")
        actual_digest = digest(downloaded)
        if actual_digest != package.sha256:
            raise PackageError(
                f"{package} has the SHA-256 digest {actual_digest}, and {package.sha256} is pinned: the registry or a "
                "proxy sent something else. It was not used"
            )
        downloaded.replace(path)
    return path


def digest(path: Path) -> str:
    """Return the SHA-256 digest of a file in hexadecimal."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
    return sha256.hexdigest()


def members(path: Path, prefixes: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a package whose names start with one of `prefixes`: (name without "package/", content)."""
    with tarfile.open(path) as archive:
        for member in archive:
            name = member.name.removeprefix("package/")
            if member.isfile() and name.startswith(prefixes):
                file = archive.extractfile(member)
                assert file is not None
                yield name, file.read()
