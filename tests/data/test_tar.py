"""Tar reader: agrees with Python's tarfile, and continues after broken parts."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle.data.skip_counter import SkipCounter
from dalle.data.tar import members

NAMES = ["a.txt", "b/c.txt", "x" * 99, "y" * 140 + "/z.txt", "z" * 300 + ".jpg", "naïve 日本.txt", "deep/" * 60 + "a"]


def tar_of(files: dict[str, bytes], kind: int = tarfile.PAX_FORMAT, **header) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for name, content in files.items():
            add(tar, name, content, **header)
    return file.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **header) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for field, value in header.items():
        setattr(entry, field, value)
    tar.addfile(entry, io.BytesIO(content))


def read(folder: Path, data: bytes) -> tuple[dict[str, bytes], SkipCounter]:
    path, warnings = folder / "a.tar", SkipCounter()
    path.write_bytes(data)
    return {name: data[offset : offset + size] for name, offset, size in members(path, warnings)}, warnings


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_is_read_with_long_names(tmp_path, kind):
    names = [name for name in NAMES if kind != tarfile.USTAR_FORMAT or len(name) < 200]
    files = {name: name.encode() * number for number, name in enumerate(names)}
    found, warnings = read(tmp_path, tar_of(files, kind, mtime=1700000000.25))
    assert found == files
    assert not warnings


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.text("abc/.", min_size=1).filter(lambda name: name.strip("./")), st.binary(max_size=1500)))
def test_files_match_tarfile(tmp_path_factory, files):
    data = tar_of(files)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = {entry.name.removeprefix("./"): tar.extractfile(entry).read() for entry in tar if entry.isreg()}
    found, _ = read(tmp_path_factory.mktemp("tars"), data)
    assert found == {
        name: content
        for name, content in expected.items()
        if not name.startswith("/") and ".." not in name.split("/") and not name.endswith("/")
    }


def test_links_devices_and_unsafe_paths_are_counted_and_skipped(tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        add(tar, "good.txt", b"1")
        add(tar, "folder", type=tarfile.DIRTYPE)
        add(tar, "soft.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "hard.jpg", type=tarfile.LNKTYPE, linkname="good.txt")
        add(tar, "pipe.jpg", type=tarfile.FIFOTYPE)
        add(tar, "disk.jpg", type=tarfile.BLKTYPE)
        add(tar, "../up.jpg", b"2")
        add(tar, "a/../../up.jpg", b"2")
        add(tar, "/etc/passwd.jpg", b"2")
        add(tar, "./last.txt", b"3")
    found, warnings = read(tmp_path, file.getvalue())
    assert found == {"good.txt": b"1", "last.txt": b"3"}
    assert warnings == {
        "links in shards": 2,
        "special files in shards": 2,
        "names in shards that lead out of them": 3,
    }


def test_concatenated_tars_are_read_to_the_end(tmp_path):
    found, warnings = read(tmp_path, tar_of({"a.txt": b"1"}) + tar_of({"b.txt": b"2"}))
    assert found == {"a.txt": b"1", "b.txt": b"2"} and not warnings


def test_reading_continues_after_a_broken_header(tmp_path):
    files = {f"{number}.txt": bytes([number]) * 1000 for number in range(1, 5)}
    data = bytearray(tar_of(files))
    data[1536 + 130] ^= 7  # in the second file's size
    found, warnings = read(tmp_path, bytes(data))
    assert found == {name: content for name, content in files.items() if name != "2.txt"}
    assert warnings == {"parts of shards that are not tar": 1}


def test_long_name_of_a_lost_file_is_not_used_for_the_next(tmp_path):
    files = {"1.txt": b"1" * 1000, "long" * 60: b"2" * 1000, "3.txt": b"3"}
    data = bytearray(tar_of(files))
    data[1536 + 1024 + 130] ^= 7  # in the size that follows the long name
    assert read(tmp_path, bytes(data))[0] == {"1.txt": files["1.txt"], "3.txt": files["3.txt"]}


@pytest.mark.parametrize("left", [3 * 512 + 700, 3 * 512, 3 * 512 - 1, 700])
def test_truncated_tar_keeps_complete_files(tmp_path, left):
    files = {"1.txt": b"1" * 1000, "2.txt": b"2" * 1000}
    found, warnings = read(tmp_path, tar_of(files)[:left])
    assert found == ({"1.txt": files["1.txt"]} if left >= 3 * 512 - 1 else {})
    assert warnings == (
        {} if left == 3 * 512 or left == 3 * 512 - 1 else {"files cut short by the end of their shard": 1}
    )


@pytest.mark.parametrize("data", [b"", b"no tar", bytes(512), bytes(10_000), b"\x1f\x8b" + bytes(range(256)) * 9])
def test_other_files_contain_no_records(tmp_path, data):
    assert read(tmp_path, data)[0] == {}


@pytest.mark.parametrize(
    "extension",
    [
        b"9999999 path=x.jpg\n",
        b"0 path=x\n" * 5,
        b"13 path=x.jpg",
        b"30 size=99999999999999999999999\n",
        b"11 size=-5\n",
        b"\xff\xff",
        b"1 1 1 1 1 1 " * 1000,
    ],
)
def test_broken_extension_header_loses_at_most_its_file(tmp_path, extension):
    header = tarfile.TarInfo("ext")
    header.type, header.size = tarfile.XHDTYPE, len(extension)
    block = header.tobuf(tarfile.USTAR_FORMAT) + extension + bytes(-len(extension) % 512)
    found, _ = read(tmp_path, block + tar_of({"a.txt": b"1", "b.txt": b"2"}))
    assert found["b.txt"] == b"2"


def test_sizes_above_8_gib_are_read(tmp_path):
    header = tarfile.TarInfo("large.bin")
    header.size = 10 * 1024**3
    path = tmp_path / "a.tar"
    with open(path, "wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.seek(512 + header.size)
        file.write(tar_of({"after.txt": b"1"}))
    assert [(name, size) for name, _, size in members(path, SkipCounter())] == [
        ("large.bin", header.size),
        ("after.txt", 1),
    ]
