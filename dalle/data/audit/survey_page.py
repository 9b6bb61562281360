"""Write the results of a survey: a Markdown page, JSON, image sheets and the tokenizer."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dalle.data.audit.look import Look, evenly_spaced
from dalle.data.audit.survey import Survey
from dalle.data.source import UnreadableRecord
from dalle.data.tally import shown
from dalle.image_grid import Cell, GridRow, image_grid

PAGE, FACTS, SHEET, COPIES, TOKENIZER = (
    "survey.md",
    "survey.json",
    "contact_sheet.png",
    "near_copies.png",
    "tokenizer.json",
)
NAMED = 20  # records per problem listed on the page; the JSON lists all
ON_SHEET = 64  # images on the contact sheet
TILE = 152  # pixels per side of an image on the sheets
COPY_GROUPS, COPIES_OF_GROUP = 12, 6  # on the sheet of near duplicates


def write_survey(survey: Survey, folder: Path) -> list[str]:
    """Write all files into `folder`. Returns the page's findings, one line each."""
    facts = survey.facts()
    (folder / FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", "utf-8", "surrogateescape")
    survey.tokenizer.save(folder / TOKENIZER)
    if cells := contact_cells(survey.looks[0]):
        title = f"{len(cells)} of the {len(survey.looks[0].source):,} training pictures, evenly spaced"
        image_grid([GridRow(cells)], tile=TILE, title=title).save(folder / SHEET)
    if rows := copy_rows(survey):
        image_grid(rows, tile=TILE, title="near copies, a group in each row").save(folder / COPIES)
    found = findings(facts)
    (folder / PAGE).write_text(page(facts, found, copies=bool(rows)), "utf-8", "backslashreplace")
    return found


def contact_cells(look: Look) -> list[Cell]:
    """Return cells of evenly spaced readable images of a split, with first caption and key."""
    readable = np.flatnonzero(look.prints["readable"])
    places = readable[list(evenly_spaced(len(readable), ON_SHEET))]
    return [cell for place in places.tolist() if (cell := _cell(look, place))]


def copy_rows(survey: Survey) -> list[GridRow]:
    """Return the largest groups of near duplicates, one row each."""
    groups = (group[:COPIES_OF_GROUP] for group in survey.near_copies[:COPY_GROUPS])
    rows = ([cell for look, place in group if (cell := _cell(look, place))] for group in groups)
    return [GridRow(cells) for cells in rows if cells]


def _cell(look: Look, place: int) -> Cell | None:
    try:
        record = look.source[look.rows[place]]
    except UnreadableRecord:  # the file has changed since the scan
        return None
    return Cell(record.image, shown(record.captions[0]), shown(f"{look.split}: {record.key}"))


def findings(facts: Mapping[str, Any]) -> list[str]:
    """Summarize the survey in sentences for a user who is about to train."""
    pictures, captions, copies = facts["pictures"], facts["captions"], facts["near_copies"]
    tokenizer = facts["tokenizer"]
    said = [
        f"{name}: {split['records']:,} records"
        + (f", of which {split['looked_at']:,} were looked at" if split["looked_at"] < split["records"] else "")
        for name, split in facts["splits"].items()
    ]
    if facts["left_out"]:
        said.append(f"left out before that: {_counts(facts['left_out'])}")
    if facts["passed_over"]:
        said.append(f"passed over: {_counts(facts['passed_over'])}")
    unreadable = sum(len(split["unreadable"]) for split in facts["splits"].values())
    said.append(
        f"{unreadable:,} pictures cannot be read, and are skipped in training"
        if unreadable
        else "every picture can be read"
    )
    if pictures["smaller_than_image_size"]:
        size = pictures["image_size"]
        said.append(
            f"{pictures['smaller_than_image_size']:,} pictures are smaller than the models' {size} pixels, and enlarged"
        )
    outside = sum(pictures["shapes"][name] for name in ("taller than 1:2", "wider than 2:1"))
    if outside:
        said.append(f"{outside:,} pictures have an aspect ratio outside [1/2, 2], which filters=paper leaves out")
    if captions["empty"]:
        said.append(f"{len(captions['empty']):,} records have no words in their captions")
    if captions["over_long"]:
        longest = captions["text_positions"] - 1  # one position is the start token
        said.append(
            f"{len(captions['over_long']):,} records have captions of more than {longest} tokens, which are cut"
        )
    fewer = tokenizer["vocabulary"] < tokenizer["asked_for"]
    why = f": the words ran out before the {tokenizer['asked_for']:,} asked for" if fewer else ""
    said.append(f"the BPE has {tokenizer['vocabulary']:,} entries{why}")
    if copies["pictures"]:
        said.append(f"{copies['pictures']:,} pictures are near copies of others, in {len(copies['groups']):,} groups")
    else:
        said.append("no picture is a near copy of another")
    if copies["val_with_copy_in_train"]:
        many = copies["val_with_copy_in_train"]
        said.append(
            f"{many:,} held-out pictures have a near copy among the training pictures: validation flatters by them"
        )
    return said


def page(facts: Mapping[str, Any], found: Iterable[str], copies: bool) -> str:
    """Return the findings and the numbers behind them in Markdown."""
    pictures, captions = facts["pictures"], facts["captions"]
    unreadable = {key: why for split in facts["splits"].values() for key, why in split["unreadable"].items()}
    parts = [f"# {_code(facts['data']['name'])}, looked over", _list(found), f"![contact sheet]({SHEET})"]
    spread = {"width": pictures["widths"], "height": pictures["heights"], "tokens of a caption": captions["tokens"]}
    parts += ["## Sizes", _table(spread), _table({"pictures": pictures["shapes"]})]
    parts += [f"{captions['captions']:,} captions, {captions['per_record']:g} a record."]
    if unreadable:
        parts += [
            "## Pictures that cannot be read",
            _named(f"{_code(key)}: {_code(why)}" for key, why in unreadable.items()),
        ]
    if captions["over_long"]:
        longest = (f"{_code(key)}: {tokens:,} tokens" for key, tokens in captions["over_long"].items())
        parts += ["## Captions that are too long", _named(longest)]
    if captions["empty"]:
        parts += ["## Records without words", _named(map(_code, captions["empty"]))]
    if copies:
        groups = (", ".join(map(_code, (*g["train"], *g["val"])[:8])) for g in facts["near_copies"]["groups"])
        parts += ["## Near copies", f"![near copies]({COPIES})", _named(groups)]
    parts += [
        "## Which data",
        _list(f"{name}: digest {_code(split['digest'])}" for name, split in facts["splits"].items()),
    ]
    parts += [f"```json\n{json.dumps(facts['data'], indent=1)}\n```", f"All of it, every name included, is in {FACTS}."]
    return "\n\n".join(parts) + "\n"


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counted.items())


def _code(text: str) -> str:
    return f"`{shown(text).replace('`', chr(39))}`"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _named(lines: Iterable[str]) -> str:
    every = list(lines)
    more = [f"and {len(every) - NAMED:,} more"] if len(every) > NAMED else []
    return _list(every[:NAMED] + more)


def _table(rows: Mapping[str, Mapping[str, int]]) -> str:
    columns = list(next(iter(rows.values()), {}))
    lines = [["", *columns], ["---", *["--:"] * len(columns)]]
    lines += [[name, *(f"{row.get(column, 0):,}" for column in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
