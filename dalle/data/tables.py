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
    lines = _Window(path, warnings)
    names, taken = _quoted(lines, separator) or ([], 1)
    file, caption, url = _columns(path, names)
    last = caption == len(names) - 1
    lines.drop(taken)
    while lines.first is not None:
        row = _quoted(lines, separator) if '"' in lines.first else None
        if row is not None and (len(row[0]) != len(names) or _swallowed(lines, row[1], separator, file, images)):
            row = None
        # no quotes or malformed ones: split the line as it is; a caption in the last column may contain separators
        as_it_stands = lines.first.rstrip("\r\n").split(separator, len(names) - 1 if last else -1)
        fields, taken = row or ([_unquoted(field) for field in as_it_stands], 1)
        if len(fields) == len(names):
            yield CaptionRow(
                fields[file], as_strings(fields[caption]), as_strings(fields[url]) if url is not None else ()
            )
        elif lines.first.strip():
            warnings.add(UNREADABLE, f"{path.name} line {lines.number}")
        lines.drop(taken)


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
    wanted = [names[place] for place in _columns(path, names) if place is not None]
    for number, row in enumerate(_parquet_values(path, table, wanted), start=1):
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
    plain = [name.strip().lower() for name in names]
    file, caption, url = (
        next((plain.index(name) for name in known if name in plain), None) for known in (FILE, CAPTION_FIELDS, URL)
    )
    if file is None or caption is None:
        raise ValueError(
            f"{path} should name a column {', '.join(FILE[:-1])} or {FILE[-1]}, and one {' or '.join(CAPTION_FIELDS)}; "
            f"it has {', '.join(names)[:200] or 'none'}"
        )
    return file, caption, url


def _quoted(lines: "_Window", separator: str) -> tuple[list[str], int] | None:
    """Parse the CSV row at the current line. Returns (fields, number of lines), or None if its quotes are malformed."""
    taken = 0

    def supplied() -> Iterator[str]:
        nonlocal taken
        for line in lines.from_here():
            taken += 1
            yield line

    try:
        return next(csv.reader(supplied(), delimiter=separator, strict=True), []), taken
    except csv.Error:
        return None


def _unquoted(field: str) -> str:
    """Strip spaces, a pair of quotes around the whole field, and one that is not closed. Others are the caption's."""
    field = field.strip()
    if field.count('"') % 2:
        return field.strip('" ')
    return field[1:-1].strip() if field and field[0] == field[-1] == '"' else field


def _swallowed(lines: "_Window", taken: int, separator: str, file: int, images: Container[str]) -> bool:
    """Return True if a later one of the row's `taken` lines is itself a row: it has an image path in column `file`."""
    for line in list(lines.from_here())[1:taken]:
        fields = line.split(separator)
        if len(fields) > file and normalize_path(fields[file].strip('" ')) in images:
            return True
    return False


class _Window:
    """Lines of a text file from the current one on, with lookahead; `drop` moves on."""

    def __init__(self, path: Path, warnings: SkipCounter):
        self._rest = _numbered(path, warnings)
        self._next: deque[tuple[int, str]] = deque()

    @property
    def first(self) -> str | None:
        """The next line, without consuming it; None at the end."""
        return next(self.from_here(), None)

    @property
    def number(self) -> int:
        """Number of the next line, from 1."""
        return self._next[0][0]

    def from_here(self) -> Iterator[str]:
        """Yield the next lines, at most `MAX_LINES`, without consuming them."""
        for place in range(MAX_LINES):
            if place == len(self._next):
                line = next(self._rest, None)
                if line is None:
                    return
                self._next.append(line)
            yield self._next[place][1]

    def drop(self, count: int) -> None:
        for _ in range(min(count, len(self._next))):
            self._next.popleft()


def _numbered(path: Path, warnings: SkipCounter) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line) of a UTF-8 text. Counts and skips lines that are not UTF-8 or too long."""
    with open(path, "rb") as file:
        for number in count(1):
            data = piece = file.readline(MAX_TEXT_BYTES)
            while len(piece) == MAX_TEXT_BYTES and not piece.endswith(b"\n"):
                data, piece = b"\xff", file.readline(MAX_TEXT_BYTES)  # not UTF-8, so the line is skipped below
            if not data:
                return
            try:
                line = data.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                warnings.add(UNREADABLE, f"{path.name} line {number}")
                continue
            yield number, line
