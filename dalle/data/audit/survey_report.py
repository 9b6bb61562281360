"""Write the results of a survey: a Markdown page, JSON, image sheets and the tokenizer."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dalle.data.audit.scan import Scan, evenly_spaced
from dalle.data.audit.survey import Survey
from dalle.data.skip_counter import printable
from dalle.data.source import UnreadableRecord
from dalle.image_grid import Cell, GridRow, image_grid

PAGE, STATISTICS, SHEET, DUPLICATES, TOKENIZER = (
    "survey.md",
    "survey.json",
    "contact_sheet.png",
    "near_duplicates.png",
    "tokenizer.json",
)
MAX_NAMES = 20  # records per problem listed on the page; the JSON lists all
ON_SHEET = 64  # images on the contact sheet
TILE = 152  # pixels per side of an image on the sheets
DUPLICATE_GROUPS, IMAGES_PER_GROUP = 12, 6  # on the sheet of near duplicates


def write_survey(survey: Survey, folder: Path) -> list[str]:
    """Write all files of a survey into `folder`. Returns the page's findings, one line each."""
    statistics = survey.statistics()
    (folder / STATISTICS).write_text(
        json.dumps(statistics, indent=1, ensure_ascii=False) + "\n", "utf-8", "surrogateescape"
    )
    survey.tokenizer.save(folder / TOKENIZER)
    if cells := contact_cells(survey.scans[0]):
        title = f"{len(cells)} of the {len(survey.scans[0].source):,} training images, evenly spaced"
        image_grid([GridRow(cells)], tile=TILE, title=title).save(folder / SHEET)
    if rows := duplicate_rows(survey):
        image_grid(rows, tile=TILE, title="near duplicates, one group per row").save(folder / DUPLICATES)
    sentences = findings(statistics)
    (folder / PAGE).write_text(page(statistics, sentences, duplicates=bool(rows)), "utf-8", "backslashreplace")
    return sentences


def contact_cells(scan: Scan) -> list[Cell]:
    """Return cells of an image sheet: evenly spaced readable images of a split, with first caption and key."""
    readable = np.flatnonzero(scan.hashes["readable"])
    positions = readable[list(evenly_spaced(len(readable), ON_SHEET))]
    return [cell for position in positions.tolist() if (cell := _cell(scan, position))]


def duplicate_rows(survey: Survey) -> list[GridRow]:
    """Return rows of an image sheet: the largest groups of near duplicates, one group per row."""
    groups = (group[:IMAGES_PER_GROUP] for group in survey.near_duplicates[:DUPLICATE_GROUPS])
    rows = ([cell for scan, position in group if (cell := _cell(scan, position))] for group in groups)
    return [GridRow(cells) for cells in rows if cells]


def _cell(scan: Scan, position: int) -> Cell | None:
    try:
        record = scan.source[scan.indices[position]]
    except UnreadableRecord:  # the file has changed since the scan
        return None
    return Cell(record.image, printable(record.captions[0]), printable(f"{scan.split}: {record.key}"))


def findings(statistics: Mapping[str, Any]) -> list[str]:
    """Summarize the survey in sentences for a user who is about to train."""
    images, captions, duplicates = statistics["images"], statistics["captions"], statistics["near_duplicates"]
    tokenizer = statistics["tokenizer"]
    lines = [
        f"{name}: {split['records']:,} records"
        + (f", of which {split['scanned']:,} were scanned" if split["scanned"] < split["records"] else "")
        for name, split in statistics["splits"].items()
    ]
    if statistics["dropped"]:
        lines.append(f"left out: {_counts(statistics['dropped'])}")
    if statistics["warnings"]:
        lines.append(f"warnings: {_counts(statistics['warnings'])}")
    unreadable = sum(len(split["unreadable"]) for split in statistics["splits"].values())
    lines.append(
        f"{unreadable:,} images cannot be read; training skips them" if unreadable else "every image can be read"
    )
    if images["smaller_than_image_size"]:
        size = images["image_size"]
        lines.append(
            f"{images['smaller_than_image_size']:,} images are smaller than data.image_size={size}; they are enlarged"
        )
    num_outside = sum(images["aspect_ratios"][name] for name in ("taller than 1:2", "wider than 2:1"))
    if num_outside:
        lines.append(f"{num_outside:,} images have an aspect ratio outside [1/2, 2], which filters=paper leaves out")
    if captions["empty"]:
        lines.append(f"{len(captions['empty']):,} records have no words in their captions")
    if captions["too_long"]:
        longest = captions["text_positions"] - 1  # one position is the start token
        lines.append(
            f"{len(captions['too_long']):,} records have captions of more than {longest} tokens, which are truncated"
        )
    fewer = tokenizer["vocabulary"] < tokenizer["requested"]
    vocabulary_note = f": the captions have too few words for the {tokenizer['requested']:,} requested" if fewer else ""
    lines.append(f"the BPE has {tokenizer['vocabulary']:,} entries{vocabulary_note}")
    if duplicates["images"]:
        lines.append(
            f"{duplicates['images']:,} images are near duplicates of others, in {len(duplicates['groups']):,} groups"
        )
    else:
        lines.append("no image is a near duplicate of another")
    if duplicates["val_with_duplicate_in_train"]:
        num_leaked = duplicates["val_with_duplicate_in_train"]
        lines.append(
            f"{num_leaked:,} held-out images have a near duplicate in the training split, so the validation loss is "
            "too low"
        )
    return lines


def page(statistics: Mapping[str, Any], sentences: Iterable[str], duplicates: bool) -> str:
    """Return the page of a survey in Markdown: the findings `sentences`, and the numbers behind them."""
    images, captions = statistics["images"], statistics["captions"]
    unreadable = {key: reason for split in statistics["splits"].values() for key, reason in split["unreadable"].items()}
    parts = [f"# {_code(statistics['data']['name'])}: data survey", _list(sentences), f"![contact sheet]({SHEET})"]
    spread = {"width": images["widths"], "height": images["heights"], "tokens per caption": captions["tokens"]}
    parts += ["## Sizes", _table(spread), _table({"images": images["aspect_ratios"]})]
    parts += [f"{captions['captions']:,} captions, {captions['per_record']:g} per record."]
    if unreadable:
        parts += [
            "## Images that cannot be read",
            _named(f"{_code(key)}: {_code(reason)}" for key, reason in unreadable.items()),
        ]
    if captions["too_long"]:
        longest = (f"{_code(key)}: {tokens:,} tokens" for key, tokens in captions["too_long"].items())
        parts += ["## Captions that are too long", _named(longest)]
    if captions["empty"]:
        parts += ["## Records without words", _named(map(_code, captions["empty"]))]
    if duplicates:
        groups = (", ".join(map(_code, (*g["train"], *g["val"])[:8])) for g in statistics["near_duplicates"]["groups"])
        parts += ["## Near duplicates", f"![near duplicates]({DUPLICATES})", _named(groups)]
    parts += [
        "## Data",
        _list(f"{name}: digest {_code(split['digest'])}" for name, split in statistics["splits"].items()),
    ]
    parts += [
        f"```json\n{json.dumps(statistics['data'], indent=1)}\n```",
        f"All statistics and all keys are in {STATISTICS}.",
    ]
    return "\n\n".join(parts) + "\n"


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counted.items())


def _code(text: str) -> str:
    return f"`{printable(text).replace('`', chr(39))}`"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _named(lines: Iterable[str]) -> str:
    all_lines = list(lines)
    remainder = [f"and {len(all_lines) - MAX_NAMES:,} more"] if len(all_lines) > MAX_NAMES else []
    return _list(all_lines[:MAX_NAMES] + remainder)


def _table(rows: Mapping[str, Mapping[str, int]]) -> str:
    columns = list(next(iter(rows.values()), {}))
    lines = [["", *columns], ["---", *["--:"] * len(columns)]]
    lines += [[name, *(f"{row.get(column, 0):,}" for column in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
