"""Caption tables: CSV, TSV, JSON lines and Parquet; an invalid row does not affect others."""

import json
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dalle.data.caption_rows import CaptionRow, group_by_image
from dalle.data.skip_counter import SkipCounter
from dalle.data.tables import TABLES, UNREADABLE

PICTURES = {name: number for number, name in enumerate(["a.png", "b.png", "sub/c.png", "d.png"])}


def read(folder: Path, name: str, content: str | bytes) -> tuple[list[CaptionRow], SkipCounter]:
    path, warnings = folder / name, SkipCounter()
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(TABLES[name](path, PICTURES, warnings)), warnings


def captions(folder: Path, content: str | bytes, name: str = "captions.csv") -> tuple[dict[str, str], int]:
    """Return the caption of each file, and the number of unreadable rows."""
    rows, warnings = read(folder, name, content)
    return {row.file: " ".join(row.captions) for row in rows}, sum(warnings.values())


def test_csv_of_spreadsheets_is_read(tmp_path):
    rows, warnings = read(
        tmp_path,
        "captions.csv",
        '\ufeffid,File_Name,Caption,URL\r\n1,a.png,"red, with ""quotes""",https://x.org/a\r\n'
        '2,b.png,"two\r\nlines",\r\n\r\n3,sub/c.png,plain,\r\n',
    )
    assert rows == [
        CaptionRow("a.png", ('red, with "quotes"',), ("https://x.org/a",)),
        CaptionRow("b.png", ("two\r\nlines",)),
        CaptionRow("sub/c.png", ("plain",)),
    ]
    assert not warnings


def test_tsv_is_read_like_csv_with_tabs(tmp_path):
    found, lost = captions(tmp_path, 'image\ttext\na.png\tred, blue\nb.png\t12" wide\n', "captions.tsv")
    assert (found, lost) == ({"a.png": "red, blue", "b.png": '12" wide'}, 0)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ('a.png,"never closed', "never closed"),
        ('a.png,12" wide', '12" wide'),
        ('a.png,"closed" and on', '"closed" and on'),
        ('a.png,he said "hi, there"', 'he said "hi, there"'),
        ("a.png,commas, without, quotes", "commas, without, quotes"),
        ('a.png,"a "quote" within, and a comma"', 'a "quote" within, and a comma'),
        ('"a.png,never closed', "never closed"),
        ('a.png,"', ""),
    ],
)
def test_row_with_broken_quotes_is_read_literally(tmp_path, row, expected):
    for ending in ("\n", '\nd.png,closed here"\n', '\nd.png,"closed here"\n', '\nd.png,he said "hi"\n'):
        found, lost = captions(tmp_path, f"file,caption\n{row}\nb.png,good\nsub/c.png,also good{ending}")
        assert found["a.png"] == expected
        assert (found["b.png"], found["sub/c.png"], lost) == ("good", "also good", 0)


@pytest.mark.parametrize("row", ["a.png", "a.png,b,c,d", '"a.png', "\x00", "a.png\tb"])
def test_row_with_other_columns_is_counted_and_skipped(tmp_path, row):
    found, lost = captions(tmp_path, f"caption,file,id\n{row}\ngood,b.png,1\n")
    assert (found, lost) == ({"b.png": "good"}, 1)


def test_invalid_utf8_and_endless_lines_are_counted_and_skipped(tmp_path):
    content = b"file,caption\na.png,caf\xe9\nb.png,good\nd.png," + b"x" * 3_000_000 + b"\nsub/c.png,good\n"
    found, lost = captions(tmp_path, content)
    assert (found, lost) == ({"b.png": "good", "sub/c.png": "good"}, 2)


def test_long_caption_is_read(tmp_path):
    found, lost = captions(tmp_path, f'file,caption\na.png,"{"x" * 500_000}"\nb.png,good\n')
    assert found == {"a.png": "x" * 500_000, "b.png": "good"} and lost == 0


@pytest.mark.parametrize("header", ["", "name,caption", "file,title", "a.png,a caption", '"file', "x" * 200_000, "\0"])
def test_missing_columns_raise(tmp_path, header):
    with pytest.raises(ValueError, match=r"captions\.csv should name a column file, image, file_name or filename, and"):
        read(tmp_path, "captions.csv", f"{header}\na.png,b\n")


def test_json_lines_are_read_independently(tmp_path):
    lines = [
        json.dumps({"file": "a.png", "caption": "red", "url": "https://x.org/a"}),
        "{broken",
        "",
        '{"caption": "no file"}',
        '{"file": 5, "caption": "no file"}',
        "[" * 100_000,
        json.dumps({"image": "b.png", "text": ["one", "two", 3]}),
        '{"file": "d.png", "caption": "\\ud800 half a letter"}',
    ]
    rows, warnings = read(tmp_path, "captions.jsonl", "\n".join(lines))
    assert rows[0] == CaptionRow("a.png", ("red",), ("https://x.org/a",))
    assert rows[1] == CaptionRow("b.png", ("one", "two"))
    assert warnings == {UNREADABLE: 4}
    (*_, (_, record)) = group_by_image(rows, PICTURES, warnings)
    assert record.captions == ("? half a letter",)


def test_parquet_is_read_with_pyarrow(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    path = tmp_path / "captions.parquet"
    parquet.write_table(
        pyarrow.table({"n": [1, 2, 3], "caption": ["red", "blue", None], "file": ["a.png", "b.png", None]}), path
    )
    warnings = SkipCounter()
    assert list(TABLES[path.name](path, PICTURES, warnings)) == [
        CaptionRow("a.png", ("red",)),
        CaptionRow("b.png", ("blue",)),
    ]
    assert warnings == {UNREADABLE: 1}
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        list(TABLES[path.name](path, PICTURES, SkipCounter()))


class FakeParquetFile:
    """Stand-in for pyarrow's class: 20,000 rows with long captions in a file that is cut short."""

    schema_arrow = SimpleNamespace(names=["file", "caption"])
    rows = 20_000

    def __init__(self, path: Path):
        pass

    def iter_batches(self, batch_size: int = 65_536, columns: Sequence[str] | None = None) -> Iterator[Any]:
        for first in range(0, self.rows, batch_size):
            yield FakeBatch(range(first, min(first + batch_size, self.rows)))
        raise OSError("Unexpected end of stream")


class FakeBatch:
    """Stand-in for pyarrow's class of the same use."""

    def __init__(self, numbers: range):
        self.numbers = numbers

    def column(self, name: str) -> SimpleNamespace:
        text = "{}.png" if name == "file" else "{:<2000}"
        return SimpleNamespace(to_pylist=lambda: [text.format(number) for number in self.numbers])


def test_parquet_is_read_in_small_batches_and_late_errors_name_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("dalle.data.tables.find_spec", lambda name: True)
    pyarrow = SimpleNamespace(ParquetFile=FakeParquetFile)
    monkeypatch.setattr("dalle.data.tables.import_module", lambda name: pyarrow)
    path = tmp_path / "captions.parquet"
    seen = 0
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"captions\.parquet cannot be read as Parquet: Unexpected end of stream"):
            for seen, row in enumerate(TABLES[path.name](path, PICTURES, SkipCounter()), start=1):
                assert row.file == f"{seen - 1}.png"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == FakeParquetFile.rows
    assert peak < 20_000_000  # bytes; all captions have 40 million


def test_parquet_without_pyarrow_raises(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr("dalle.data.tables.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"captions\.parquet needs pyarrow: pip install pyarrow, or write the table as"
    ):
        read(tmp_path, "captions.parquet", b"")


def test_rows_are_grouped_by_normalised_image_path():
    rows = [
        CaptionRow("b.png", ("one",)),
        CaptionRow("./a.png", ("red",), ("https://x.org",)),
        CaptionRow("sub\\c.png", ("three",)),
        CaptionRow(" b.png", ("two",)),
        *(CaptionRow(outside, ("lost",)) for outside in ("../a.png", "/a.png", "sub/../../a.png", "e.png", "", ".")),
    ]
    warnings = SkipCounter()
    found = list(group_by_image(rows, PICTURES, warnings))
    assert [(named, record.key, record.captions, record.urls) for named, record in found] == [
        (True, "a.png", ("red",), ("https://x.org",)),
        (True, "b.png", ("one", "two"), ()),
        (True, "sub/c.png", ("three",), ()),
        (False, "d.png", (), ()),
    ]
    assert warnings == {"rows whose image does not exist": 6}
