"""Downloading pinned packages: only the pinned bytes are kept, and failures say what to do."""

import hashlib
import os
import stat

import pytest
from drawings_packages import packed

from dalle.data.drawings.packages import Package, PackageError, download, members

CONTENT = {"data/a.json": b"{}", "other.txt": b"text"}


@pytest.fixture
def tgz(tmp_path):
    return packed(tmp_path / "made.tgz", CONTENT)


@pytest.fixture
def package(tgz) -> Package:
    return Package("@scope/name", "1.2.3", hashlib.sha256(tgz.read_bytes()).hexdigest())


def npm(tmp_path, monkeypatch, script: str) -> None:
    """Put an npm on the path that runs `script`; $5 is the folder to write to."""
    folder = tmp_path / "bin"
    folder.mkdir()
    path = folder / "npm"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/bin{os.pathsep}/usr/bin")


def test_a_package_is_downloaded_once_and_checked(package, tgz, tmp_path, monkeypatch):
    npm(tmp_path, monkeypatch, f'cp {tgz} "$5/{package.file}"; echo once >>{tmp_path}/calls')
    first = download(package, tmp_path / "downloads")
    assert download(package, tmp_path / "downloads") == first
    assert (tmp_path / "calls").read_text() == "once\n"
    assert dict(members(first, ("data/",))) == {"data/a.json": b"{}"}


def test_another_digest_is_refused_and_not_kept(package, tmp_path, monkeypatch):
    npm(tmp_path, monkeypatch, f'echo something else >"$5/{package.file}"')
    with pytest.raises(PackageError, match=f"{package.sha256} is pinned"):
        download(package, tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_an_interrupted_download_is_downloaded_again(package, tgz, tmp_path, monkeypatch):
    npm(tmp_path, monkeypatch, f'cp {tgz} "$5/{package.file}"')
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / package.file).write_bytes(tgz.read_bytes()[:20])
    assert download(package, tmp_path / "downloads").read_bytes() == tgz.read_bytes()


def test_a_registry_out_of_reach_is_named_with_the_package(package, tmp_path, monkeypatch):
    npm(tmp_path, monkeypatch, "echo 'npm error code ENOTFOUND' >&2; exit 1")
    with pytest.raises(PackageError, match=r"did not give @scope/name@1\.2\.3: npm error code ENOTFOUND"):
        download(package, tmp_path / "downloads")


def test_without_npm_the_error_says_how_to_get_it(package, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackageError, match="npm is not installed.*apt install npm"):
        download(package, tmp_path / "downloads")
