"""Datasheet of the training data of a model, stage by stage: a Markdown page. `croissant.py` writes it as metadata."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from dalle.data import attribution
from dalle.data.audit.croissant import croissant
from dalle.data.audit.stage_data import (
    NOT_RECORDED,
    Stages,
    by_stage,
    common_settings,
    count_columns,
    count_rows,
    counts_by_stage,
    differing_settings,
    digests,
    joined,
    lacking,
    omissions,
    recorded,
    unknown_reason,
    with_stages,
)

PAGE, CROISSANT = "datasheet.md", "croissant.json"


def write_datasheet(folder: Path, stages: Stages) -> list[Path]:
    """Write the datasheet of a model to `folder`. Returns the files.

    They are the Markdown page, and the Croissant metadata if the package mlcroissant is installed and a stage records
    its data.
    """
    written = [folder / PAGE]
    written[0].write_text(datasheet(stages), encoding="utf-8")
    if recorded(stages) and find_spec("mlcroissant") is not None:
        metadata = json.dumps(croissant(stages), indent=2, ensure_ascii=False, default=str)
        written.append(folder / CROISSANT)
        written[1].write_text(metadata + "\n", encoding="utf-8")
    return written


def datasheet(stages: Stages) -> str:
    """Return a Markdown page: data sets and settings, records, counts, what was left out, authors and licences.

    What all stages with a record have in common is said once. Where they differ, a table has a column or a row for
    each.
    """
    known = recorded(stages)
    title = f"# Training data of {title_of(stages)}"
    if not known:
        if len(stages) == 1:
            (model,) = stages.values()
            return f"{title}\n\nUnknown: {unknown_reason(model)}.\n"
        return f"{title}\n\n{stage_table(stages)}\n"
    parts = [title, *([stage_table(stages)] if len(stages) > 1 else [])]
    if len(known) < len(stages):
        parts.append(f"What follows is about {joined(known)}.")
    parts += [*settings_part(known), *records_part(known)]
    if any("filters" in model.meta["data"] for model in known.values()):  # a data set of files
        parts.append(
            "Records are counted before their images are read. Training skips images that cannot be read, and those "
            "whose SHA-256 is on the opt-out list."
        )
    parts += counts_part(known)
    if authors := with_stages(known, "attributions"):
        columns = {"set": "part", "author": "author", "licence": "licence", "url": "address"}
        parts.append("## Authors and licences\n" + source_table(columns, authors, known))
        parts += not_recorded(lacking(known, "attributions"))
    if files := with_stages(known, "packages"):
        files = [({**file, "sha256": f"`{file['sha256']}`"}, names) for file, names in files]
        columns = {"name": "file", "sha256": "SHA-256", "url": "address"}
        parts.append("## Files that the images come from\n" + source_table(columns, files, known))
        parts += not_recorded(lacking(known, "packages"))
    for note in dict.fromkeys(attribution(model.meta["data"]["name"]) for model in known.values()):
        parts += [f"Show with images of the model: {note}"] if note else []
    for name, model in known.items():
        if init := model.meta.get("init"):
            subject = "Training" if len(stages) == 1 else f"Training of {name}"
            parts.append(f"{subject} started from a model with digest `{init['digest']}`, whose data count as well.")
    return "\n\n".join(parts) + "\n"


def title_of(stages: Stages) -> str:
    """Return the stages in words, such as "a transformer" or "dvae, clip and transformer"."""
    return joined(stages) if len(stages) > 1 else f"a {next(iter(stages.values())).kind}"


def stage_table(stages: Stages) -> str:
    """Return a table of the stages: data set, number and digest of the training records, or why they are unknown."""
    rows = []
    for name, model in stages.items():
        if "data" not in model.meta:
            rows.append((name, f"{NOT_RECORDED}: {unknown_reason(model)}", NOT_RECORDED, NOT_RECORDED))
            continue
        train = model.meta.get("records", {}).get("train")
        found = (f"{train['records']:,}", f"`{train['digest']}`") if train else (NOT_RECORDED, NOT_RECORDED)
        rows.append((name, f"`{model.meta['data']['name']}`", *found))
    return table(["stage", "data set", "training records", "digest"], rows)


def settings_part(known: Stages) -> Iterator[str]:
    """Yield a table of the settings that the stages have in common, and one of those that differ."""
    data_sets = by_stage({name: model.meta["data"]["name"] for name, model in known.items()})
    if (common := common_settings(known)) or len(known) == 1:
        one = f"Data set `{data_sets[0][1]}`, with these settings:"
        opening = one if len(data_sets) == 1 else "Settings that the data sets have in common:"
        yield f"{opening}\n\n" + table(["setting", "value"], common)
    if differing := differing_settings(known):
        rows = [(setting, *(values.get(name, "not set") for name in known)) for setting, values in differing]
        yield f"## Settings that differ\n{table(['setting', *known], rows)}"


def records_part(known: Stages) -> Iterator[str]:
    """Yield a table of the records of each split, and what was left out."""
    records = by_stage({name: digests(model) for name, model in known.items()})
    several = len(records) > 1
    rows = []
    for names, splits in records:
        for split, (count, digest) in splits.items():
            rows.append((*([joined(names)] if several else []), split, f"{count:,}", f"`{digest}`"))
        if several and not splits:
            rows.append((joined(names), *[NOT_RECORDED] * 3))
    yield "## Records\n" + table([*(["stages"] if several else []), "split", "records", "digest"], rows)
    left_out = by_stage({name: omissions(model) for name, model in known.items()})
    if len(left_out) == 1:
        yield from left_out[0][1]
    else:
        yield "\n".join(f"- {joined(names)}: {' '.join(sentences)}" for names, sentences in left_out)


def counts_part(known: Stages) -> Iterator[str]:
    """Yield a table of the training records by each property, with a column for each stage if they differ."""
    for name, groups in counts_by_stage(known).items():
        if len(groups) == 1:
            rows: Iterable[Sequence[object]] = count_rows(groups[0][1] or {})
            yield f"## By {name}\n" + table([name, "training records"], rows)
        else:
            heads = [joined(names) for names, _ in groups]
            yield f"## By {name}\n" + table([name, *heads], count_columns([counts for _, counts in groups]))


def not_recorded(names: Sequence[str]) -> list[str]:
    """Return a sentence on stages that lack a record; none if there are none."""
    return [f"For {joined(names)}: {NOT_RECORDED}."] if names else []


def source_table(columns: Mapping[str, str], rows: Sequence[tuple[Mapping[str, str], list[str]]], known: Stages) -> str:
    """Return a table of authors or files. If not all stages have the same, the last column names those that do."""
    differ = any(len(names) < len(known) for _, names in rows)
    cells = [[*(row.get(key, "") for key in columns), *([joined(names)] if differ else [])] for row, names in rows]
    return table([*columns.values(), *(["stages"] if differ else [])], cells)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; line breaks and vertical bars in cells are escaped."""
    cells = [[" ".join(str(cell).replace("|", "\\|").split()) for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
