"""A folder that is replaced is complete under its name at any time, also if the process is killed meanwhile."""

import multiprocessing
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
    assert set(done[: done.index("replaced")]) == {folder.name, "dvae", "config.json"}
    assert folder.name.startswith(".model.")


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
    (tmp_path / "best").rename(tmp_path / ".best.7-abcd.old")
    with pytest.raises(RuntimeError, match="stop"), atomic_folder(tmp_path / "best"):
        raise RuntimeError("stop")
    assert content(tmp_path / "best") == ["old", "old"]
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


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


def test_of_two_writers_of_a_folder_the_last_ones_stays_whole(tmp_path):
    with atomic_folder(tmp_path / "best") as first:
        (first / "a").write_text("first")
        write(tmp_path / "best", "second")
        assert content(tmp_path / "best") == ["second", "second"]
        (first / "b").write_text("first")
    assert content(tmp_path / "best") == ["first", "first"]
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_folder_that_another_process_writes_between_the_two_renames_is_replaced(tmp_path, monkeypatch):
    write(tmp_path / "best", "old")
    replace, others = atomic_files.os.replace, iter(["other"])

    def replace_after_another(source, target):
        if Path(source).suffix == ".part":
            for text in others:
                write(tmp_path / "best", text)
        replace(source, target)

    monkeypatch.setattr(atomic_files.os, "replace", replace_after_another)
    write(tmp_path / "best", "new")
    assert content(tmp_path / "best") == ["new", "new"]
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def write_repeatedly(folder: Path, text: str, times: int) -> None:
    for _ in range(times):
        write(folder, text)


def test_processes_that_write_the_same_folder_at_once_leave_it_whole(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_repeatedly, args=(tmp_path / "best", text, 50)) for text in "xyz"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert content(tmp_path / "best") in (["x", "x"], ["y", "y"], ["z", "z"])
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_temporary_folder_is_deleted_once_nothing_in_it_was_written_for_a_day(tmp_path):
    day = 24 * 60 * 60
    leftovers = {".best.1-abcd.part": (2 * day, 2 * day), ".best.2-abcd.part": (2 * day, 60)}
    for name, ages in leftovers.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").touch()
        for path, age in zip((tmp_path / name, tmp_path / name / "model"), ages, strict=True):
            os.utime(path, (time.time() - age, time.time() - age))
    (tmp_path / ".best.of.3-abcd.old").mkdir()  # of a folder best.of
    write(tmp_path / "best", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".best.2-abcd.part", ".best.of.3-abcd.old", "best"]
