"""Read caption tables: captions.csv, .tsv, .jsonl or .parquet in a folder. Broken rows are skipped and counted.

A row has the path of an image within the folder (column file, image, file_name or filename) and a caption (caption or
text). An optional column url is used by the opt-out list.
"""

import csv
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

from dalle.data.caption_rows import CaptionRow, normalize_path
from dalle.data.captions import CAPTION_FIELDS, MAX_TEXT_BYTES, as_strings, first_strings, parse_json_object
from dalle.data.skip_counter import SkipCounter

FILE = ("file", "image", "file_name", "filename")
URL = ("url",)
MAX_LINES = 100  # of one CSV row: a quoted caption may have line breaks
PARQUET_BATCH = 4_096  # rows that are Python objects at a time; pyarrow's default of 65,536 may take hundreds of MB
UNREADABLE = "rows that cannot be read"


def csv_rows(path: Path, images: Container[str], warnings: SkipCounter, separator: str = ",") -> Iterator[CaptionRow]:
    """Yield the rows of a CSV. Rows are parsed independently: an unclosed quote affects only its own row.

    Raises ValueError if the first line has no column for the file or for the caption.
    """
    lines = _LineBuffer(path, warnings)
    names, num_lines = _parse_quoted_row(lines, separator) or ([], 1)
    file, caption, url = _columns(path, names)
    is_caption_last = caption == len(names) - 1
    lines.drop(num_lines)
    while lines.first is not None:
        row = _parse_quoted_row(lines, separator) if '"' in lines.first else None
        if row is not None and (len(row[0]) != len(names) or _swallows_rows(lines, row[1], separator, file, images)):
            row = None
        # no quotes or malformed ones: split the line as it is; a caption in the last column may contain separators
        raw_fields = lines.first.rstrip("\r\n").split(separator, len(names) - 1 if is_caption_last else -1)
        fields, num_lines = row or ([_strip_quotes(field) for field in raw_fields], 1)
        if len(fields) == len(names):
            yield CaptionRow(
                fields[file], as_strings(fields[caption]), as_strings(fields[url]) if url is not None else ()
            )
        elif lines.first.strip():
            warnings.add(UNREADABLE, f"{path.name} line {lines.number}")
        lines.drop(num_lines)


def jsonl_rows(path: Path, images: Container[str], warnings: SkipCounter) -> Iterator[CaptionRow]:
    """Yield the rows of a JSON Lines file, one object per line. A caption may be a list of captions."""
    for number, line in _numbered(path, warnings):
        try:
            fields = parse_json_object(line)
            (file, *_) = first_strings(fields, FILE)
        except ValueError:
            if line.strip():
                warnings.add(UNREADABLE, f"{path.name} line {number}")
            continue
        yield CaptionRow(file, first_strings(fields, CAPTION_FIELDS), first_strings(fields, URL))


def parquet_rows(path: Path, images: Container[str], warnings: SkipCounter) -> Iterator[CaptionRow]:
    """Yield the rows of a Parquet file. A caption may be a list of captions.

    Raises ValueError if pyarrow is not installed, the file is broken, or a column is missing.
    """
    if find_spec("pyarrow") is None:
        raise ValueError(f"{path} needs pyarrow: pip install pyarrow, or write the table as captions.csv")
    try:
        table = import_module("pyarrow.parquet").ParquetFile(path)
    except Exception as problem:  # pyarrow has its own exception types
        raise ValueError(f"{path} cannot be read as Parquet: {problem}") from problem
    names = table.schema_arrow.names
    column_names = [names[column] for column in _columns(path, names) if column is not None]
    for number, row in enumerate(_parquet_values(path, table, column_names), start=1):
        file, caption, *url = map(as_strings, row)
        if file:
            yield CaptionRow(file[0], caption, *url)
        else:
            warnings.add(UNREADABLE, f"{path.name} row {number}")


def _parquet_values(path: Path, table: Any, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Yield the values of `columns` for each row of a `ParquetFile`. Raises ValueError if a part of it is broken."""
    try:
        for batch in table.iter_batches(batch_size=PARQUET_BATCH, columns=columns):
            yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
    except Exception as problem:  # rows are read only here
        raise ValueError(f"{path} cannot be read as Parquet: {problem}") from problem


TABLES: dict[str, Callable[[Path, Container[str], SkipCounter], Iterator[CaptionRow]]] = {
    "captions.csv": csv_rows,
    "captions.tsv": partial(csv_rows, separator="\t"),
    "captions.jsonl": jsonl_rows,
    "captions.parquet": parquet_rows,
}


def _columns(path: Path, names: Sequence[str]) -> tuple[int, int, int | None]:
    """Find the columns in a table's column names: numbers of file, caption and url (None if absent)."""
    normalized_names = [name.strip().lower() for name in names]
    file, caption, url = (
        next((normalized_names.index(name) for name in accepted_names if name in normalized_names), None)
        for accepted_names in (FILE, CAPTION_FIELDS, URL)
    )
    if file is None or caption is None:
        raise ValueError(
            f"{path} should name a column {', '.join(FILE[:-1])} or {FILE[-1]}, and one {' or '.join(CAPTION_FIELDS)}; "
            f"it has {', '.join(names)[:200] or 'none'}"
        )
    return file, caption, url


def _parse_quoted_row(lines: "_LineBuffer", separator: str) -> tuple[list[str], int] | None:
    """Parse the CSV row at the current line. Returns (fields, number of lines), or None if its quotes are malformed."""
    num_lines = 0

    def supplied() -> Iterator[str]:
        nonlocal num_lines
        for line in lines.peek_lines():
            num_lines += 1
            yield line

    try:
        return next(csv.reader(supplied(), delimiter=separator, strict=True), []), num_lines
    except csv.Error:
        return None


def _strip_quotes(field: str) -> str:
    """Strip spaces, and quotes that enclose the field or are not closed; quotes within the field stay."""
    field = field.strip()
    if field.count('"') % 2:
        return field.strip('" ')
    return field[1:-1].strip() if field and field[0] == field[-1] == '"' else field


def _swallows_rows(lines: "_LineBuffer", num_lines: int, separator: str, file: int, images: Container[str]) -> bool:
    """Return True if a later one of a row's `num_lines` lines is a row itself: column `file` has an image path."""
    for line in list(lines.peek_lines())[1:num_lines]:
        fields = line.split(separator)
        if len(fields) > file and normalize_path(fields[file].strip('" ')) in images:
            return True
    return False


class _LineBuffer:
    """Lines of a text file from the current one on, with lookahead of up to `MAX_LINES` lines. `drop` consumes them."""

    def __init__(self, path: Path, warnings: SkipCounter):
        self._lines = _numbered(path, warnings)
        self._buffer: deque[tuple[int, str]] = deque()

    @property
    def first(self) -> str | None:
        """The next line, without consuming it; None at the end."""
        return next(self.peek_lines(), None)

    @property
    def number(self) -> int:
        """Number of the next line, from 1."""
        return self._buffer[0][0]

    def peek_lines(self) -> Iterator[str]:
        """Yield the next lines, at most `MAX_LINES`, without consuming them."""
        for position in range(MAX_LINES):
            if position == len(self._buffer):
                line = next(self._lines, None)
                if line is None:
                    return
                self._buffer.append(line)
            yield self._buffer[position][1]

    def drop(self, count: int) -> None:
        """Consume `count` of the lines that were read ahead."""
        for _ in range(min(count, len(self._buffer))):
            self._buffer.popleft()


def _numbered(path: Path, warnings: SkipCounter) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line) of a UTF-8 text. Counts and skips lines that are not UTF-8 or too long."""
    with open(path, "rb") as file:
        for number in count(1):
            data = chunk = file.readline(MAX_TEXT_BYTES)
            while len(chunk) == MAX_TEXT_BYTES and not chunk.endswith(b"\n"):
                data, chunk = b"\xff", file.readline(MAX_TEXT_BYTES)  # not UTF-8, so the line is skipped below
            if not data:
                return
            try:
                line = data.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                warnings.add(UNREADABLE, f"{path.name} line {number}")
                continue
            yield number, line
