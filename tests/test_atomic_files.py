"""A folder that is replaced is complete under its name at any time, also if the process is killed meanwhile."""

import os
import shutil
import time
from pathlib import Path

import pytest

from dalle import atomic_files
from dalle.atomic_files import atomic_folder, atomic_write


def write(folder: Path, text: str) -> None:
    with atomic_folder(folder) as temporary:
        for name in ("a", "b"):
            (temporary / name).write_text(text)


def content(folder: Path) -> list[str]:
    return [(folder / name).read_text() for name in ("a", "b")]


def test_nothing_is_deleted_under_the_folders_own_name(tmp_path, monkeypatch):
    """Deleting takes several steps: a process killed between them would leave a part of the checkpoint."""
    deleted = []
    delete = shutil.rmtree
    monkeypatch.setattr(
        atomic_files.shutil, "rmtree", lambda path, **options: (deleted.append(Path(path)), delete(path, **options))
    )
    write(tmp_path / "best", "old")
    write(tmp_path / "best", "new")
    assert content(tmp_path / "best") == ["new", "new"]
    assert tmp_path / "best" not in deleted
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_files_in_sub_folders_are_flushed_before_the_folder_takes_its_name(tmp_path, monkeypatch):
    done = []
    replace = atomic_files.os.replace
    monkeypatch.setattr(atomic_files, "fsync", lambda path: done.append(path.name))
    monkeypatch.setattr(atomic_files.os, "replace", lambda *paths: (done.append("replaced"), replace(*paths)))
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "dvae").mkdir()
        (folder / "dvae" / "config.json").write_text("{}")
    assert set(done[: done.index("replaced")]) == {".model.part", "dvae", "config.json"}


def test_symbolic_links_stay_and_what_they_point_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "file").write_text("old")
    (tmp_path / "disk" / "folder").mkdir()
    for name in ("file", "folder"):
        (tmp_path / name).symlink_to(Path("disk", name))
    write(tmp_path / "folder", "new")
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("new")
    assert content(tmp_path / "disk" / "folder") == ["new", "new"]
    assert (tmp_path / "disk" / "file").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "file", "folder"]
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").is_symlink() and (tmp_path / "folder").is_symlink()


def test_the_previous_folder_stays_if_the_new_one_cannot_take_its_name(tmp_path, monkeypatch):
    write(tmp_path / "best", "old")
    replace = atomic_files.os.replace

    def fail(source, target):
        if Path(source).suffix == ".part":
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(atomic_files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "best", "new")
    assert content(tmp_path / "best") == ["old", "old"]
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_folder_that_a_killed_process_moved_aside_is_put_back(tmp_path):
    write(tmp_path / "best", "old")
    (tmp_path / "best").rename(tmp_path / ".best.old")
    with pytest.raises(RuntimeError, match="stop"), atomic_folder(tmp_path / "best"):
        raise RuntimeError("stop")
    assert content(tmp_path / "best") == ["old", "old"]


def test_of_two_writers_at_a_time_the_last_ones_file_stays_whole(tmp_path):
    file = tmp_path / "file"
    with atomic_write(file) as first:
        first.write_text("first")
        with atomic_write(file) as second:
            second.write_text("second")
        assert file.read_text() == "second"
    assert file.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_temporary_file_of_a_killed_process_is_deleted_after_a_day(tmp_path):
    names = [f".file.{number}-abcd.part" for number in (1, 2)]
    for name, age in zip(names, (25, 1), strict=True):
        (tmp_path / name).touch()
        written = time.time() - age * 60 * 60
        os.utime(tmp_path / name, (written, written))
    with atomic_write(tmp_path / "file") as temporary:
        temporary.touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [names[1], "file"]
