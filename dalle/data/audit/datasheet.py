"""Datasheet of a checkpoint's training data: a Markdown page, and Croissant metadata (mlcommons.org/croissant)."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    records = model.meta.get("records", {})
    parts = [
        f"# Training data of a {model.kind}",
        f"Data set `{data['name']}`, with these settings:\n\n" + table(["setting", "value"], settings(data)),
        "## Records\n"
        + table(
            ["split", "records", "digest"],
            [(split, f"{record['records']:,}", f"`{record['digest']}`") for split, record in records.items()],
        ),
        *omissions(model),
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
    if files := model.meta.get("packages"):
        rows = [(each["name"], f"`{each['sha256']}`", each["url"]) for each in files]
        parts.append("## Files that the images come from\n" + table(["file", "SHA-256", "address"], rows))
    if note := attribution(data["name"]):
        parts.append(f"Show with images of the model: {note}")
    if init := model.meta.get("init"):
        parts.append(f"Training started from a model with digest `{init['digest']}`, whose data count as well.")
    return "\n\n".join(parts) + "\n"


def croissant(model: Provenance) -> dict[str, Any]:
    """Return the data set as Croissant metadata in JSON-LD.

    They are the sources as files with their SHA-256, the number of training records by style and so on as record sets,
    and the omissions and settings in fields of the vocabulary for responsible AI. Needs the package mlcroissant.
    """
    import mlcroissant as mlc

    name = model.meta["data"]["name"]
    records = model.meta.get("records", {})
    counts = model.meta.get("counts", {})
    authors = model.meta.get("attributions", [])
    metadata = mlc.Metadata(
        conforms_to=["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"],
        name=f"dalle-{name}",
        description=" ".join(filter(None, (*description(model), *omissions(model), attribution(name)))),
        version="1.0.0",
        license=sorted({author["licence"] for author in authors if author.get("licence")}) or None,
        creators=[mlc.Organization(name=author.get("author", ""), url=author.get("url")) for author in authors],
        cite_as=f"data={name}, digest {records.get('train', {}).get('digest', 'unknown')}",
        in_language=sorted(counts.get("language", {})) or None,
        distribution=[
            mlc.FileObject(
                id=file["name"],
                name=file["name"],
                content_url=file["url"],
                sha256=file["sha256"],
                encoding_formats=["application/gzip"],
            )
            for file in model.meta.get("packages", [])
        ],
        record_sets=[counts_record_set(by, numbers) for by, numbers in counts.items() if numbers],
        data_preprocessing_protocol=[f"{setting}: {value}" for setting, value in settings(model.meta["data"])],
        data_collection_missing_data=" ".join(omissions(model)),
    )
    return metadata.to_json()


def description(model: Provenance) -> Iterator[str]:
    """Yield sentences on the records of each split and on the largest counts of training records."""
    records = model.meta.get("records", {})
    splits = [
        f"{record['records']:,} records of the split {split} (digest {record['digest']})"
        for split, record in records.items()
    ]
    yield f"Image-caption pairs that a {model.kind} was trained on: {', '.join(splits) or 'number not recorded'}."
    for name, counts in model.meta.get("counts", {}).items():
        yield f"Training records by {name}: {', '.join(' '.join(row) for row in count_rows(counts))}."


def counts_record_set(name: str, counts: Mapping[str, int]) -> Any:
    """Return a Croissant record set with a record for each value of a property: the value, and how many have it."""
    import mlcroissant as mlc

    key = f"counts-by-{name}"
    fields = {name: mlc.DataType.TEXT, "records": mlc.DataType.INTEGER}
    return mlc.RecordSet(
        id=key,
        name=key,
        description=f"Number of training records by {name}; a record may be counted under several.",
        fields=[mlc.Field(id=f"{key}/{field}", name=field, data_types=[each]) for field, each in fields.items()],
        data=[{f"{key}/{name}": value, f"{key}/records": count} for value, count in counts.items()],
    )


def count_rows(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return rows of names and counts, the largest first; those beyond `MAX_ROWS` are added up."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    others = ordered[MAX_ROWS:]
    total = f"{sum(count for _, count in others):,}"
    more = [(f"{len(others)} other{'s' if len(others) > 1 else ''}", total)] if others else []
    return [(name, f"{count:,}") for name, count in ordered[:MAX_ROWS]] + more


def settings(data: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return name and value of each setting of the data set, without those that are not set or name files."""
    return [
        (name, ", ".join(map(str, value)) if isinstance(value, list) else value)
        for name, value in flatten(data).items()
        if name not in ("name", *PATHS) and value not in ("", None, [])
    ]


def omissions(model: Provenance) -> list[str]:
    """Return sentences on what was left out of the data set, and on the opt-out list."""
    listed = "yes" if model.meta["data"].get("opt_out") else "none"
    return [f"Left out of the whole data set: {'; '.join(model.left_out())}.", f"Opt-out list: {listed}."]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; line breaks and vertical bars in cells are escaped."""
    cells = [[" ".join(str(cell).replace("|", "\\|").split()) for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
