"""Datasheet of a checkpoint's training data: a Markdown page, and Croissant metadata (mlcommons.org/croissant)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dalle.config_validation import flatten
from dalle.data import attribution
from dalle.data.audit.provenance import Provenance

PAGE, CROISSANT = "datasheet.md", "croissant.json"
MAX_ROWS = 40  # of a table of counts
PATHS = ("path", "captions", "opt_out")  # settings that name files of the machine that trained


def write_datasheet(folder: Path, model: Provenance) -> list[Path]:
    """Write the datasheet of a checkpoint to `folder`. Returns the files.

    They are the Markdown page, and the Croissant metadata if the package mlcroissant is installed and the checkpoint
    records its data.
    """
    written = [folder / PAGE]
    written[0].write_text(datasheet(model), encoding="utf-8")
    if "data" in model.meta and find_spec("mlcroissant") is not None:
        metadata = json.dumps(croissant(model), indent=2, ensure_ascii=False, default=str)
        written.append(folder / CROISSANT)
        written[1].write_text(metadata + "\n", encoding="utf-8")
    return written


def datasheet(model: Provenance) -> str:
    """Return a Markdown page: data set and settings, records, counts, what was left out, authors and licences."""
    data = model.meta.get("data")
    if data is None:
        imported = model.meta.get("imported")
        reason = f"its weights were imported from {imported}" if imported else "the checkpoint has no record of it"
        return f"# Training data of a {model.kind}\n\nUnknown: {reason}.\n"
    settings = {name: value for name, value in flatten(data).items() if name not in ("name", *PATHS)}
    shown = [
        (name, ", ".join(map(str, value)) if isinstance(value, list) else value)
        for name, value in settings.items()
        if value not in ("", None)
    ]
    records = model.meta.get("records", {})
    left_out = next(iter(records.values()), {}).get("left_out", {})  # counted over the whole data set, not by split
    parts = [
        f"# Training data of a {model.kind}",
        f"Data set `{data['name']}`, with these settings:\n\n" + table(["setting", "value"], shown),
        "## Records\n"
        + table(
            ["split", "records", "digest"],
            [(split, f"{record['records']:,}", f"`{record['digest']}`") for split, record in records.items()],
        ),
        f"Left out of the whole data set: {format_reasons(left_out)}.",
        f"Opt-out list: {'yes' if data.get('opt_out') else 'none'}.",
    ]
    if "filters" in data:  # a data set of files
        parts.append(
            "Records are counted before their images are read. Training skips images that cannot be read, and those "
            "whose SHA-256 is on the opt-out list."
        )
    for name, counts in model.meta.get("counts", {}).items():
        parts.append(f"## By {name}\n" + table([name, "training records"], count_rows(counts)))
    if authors := model.meta.get("attributions"):
        columns = ("set", "author", "licence", "url")
        rows = [[each.get(column, "") for column in columns] for each in authors]
        parts.append("## Authors and licences\n" + table(["part", "author", "licence", "address"], rows))
    if note := attribution(data["name"]):
        parts.append(f"Show with images of the model: {note}")
    if init := model.meta.get("init"):
        parts.append(f"Training started from a model with digest `{init['digest']}`, whose data count as well.")
    return "\n\n".join(parts) + "\n"


def croissant(model: Provenance) -> dict[str, Any]:
    """Return the data set as Croissant metadata in JSON-LD.

    Needs the package mlcroissant.
    """
    import mlcroissant as mlc

    name = model.meta["data"]["name"]
    records = model.meta.get("records", {})
    described = ", ".join(f"{record['records']:,} records of the split {split}" for split, record in records.items())
    authors = model.meta.get("attributions", [])
    pairs = f"Image-caption pairs that a {model.kind} was trained on: {described}."
    metadata = mlc.Metadata(
        name=f"dalle-{name}",
        description=f"{pairs} {attribution(name)}".strip(),
        version="1.0.0",
        license=sorted({author["licence"] for author in authors if author.get("licence")}) or None,
        creators=[mlc.Organization(name=author.get("author", ""), url=author.get("url")) for author in authors],
        cite_as=f"data={name}, digest {records.get('train', {}).get('digest', 'unknown')}",
    )
    return metadata.to_json()


def count_rows(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return rows of names and counts, the largest first; those beyond `MAX_ROWS` are added up."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    others = ordered[MAX_ROWS:]
    total = f"{sum(count for _, count in others):,}"
    more = [(f"{len(others)} other{'s' if len(others) > 1 else ''}", total)] if others else []
    return [(name, f"{count:,}") for name, count in ordered[:MAX_ROWS]] + more


def format_reasons(reasons: Mapping[str, int]) -> str:
    """Format numbers of omitted records: "5 on the opt-out list; 2 without a caption", or "nothing"."""
    return "; ".join(f"{count:,} {reason}" for reason, count in reasons.items()) or "nothing"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; line breaks and vertical bars in cells are escaped."""
    cells = [[" ".join(str(cell).replace("|", "\\|").split()) for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
