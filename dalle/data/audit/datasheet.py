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
    common_settings,
    count_columns,
    count_rows,
    counts_by_stage,
    differing_settings,
    group_stages,
    join_names,
    omissions,
    split_digests,
    stages_lacking,
    stages_with_data,
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
    if stages_with_data(stages) and find_spec("mlcroissant") is not None:
        metadata = json.dumps(croissant(stages), indent=2, ensure_ascii=False, default=str)
        written.append(folder / CROISSANT)
        written[1].write_text(metadata + "\n", encoding="utf-8")
    return written


def datasheet(stages: Stages) -> str:
    """Return a Markdown page: data sets and settings, records, counts, what was left out, authors and licences.

    What all stages with a record have in common is said once. Where they differ, a table has a column or a row for
    each.
    """
    recorded_stages = stages_with_data(stages)
    title = f"# Training data of {title_of(stages)}"
    if not recorded_stages:
        if len(stages) == 1:
            (model,) = stages.values()
            return f"{title}\n\nUnknown: {unknown_reason(model)}.\n"
        return f"{title}\n\n{stage_table(stages)}\n"
    parts = [title, *([stage_table(stages)] if len(stages) > 1 else [])]
    if len(recorded_stages) < len(stages):
        parts.append(f"What follows is about {join_names(recorded_stages)}.")
    parts += [*settings_part(recorded_stages), *records_part(recorded_stages)]
    if any("filters" in model.meta["data"] for model in recorded_stages.values()):  # a data set of files
        parts.append(
            "Records are counted before their images are read. Training skips images that cannot be read, and those "
            "whose SHA-256 is on the opt-out list."
        )
    parts += counts_part(recorded_stages)
    if authors := with_stages(recorded_stages, "attributions"):
        columns = {"set": "part", "author": "author", "licence": "licence", "url": "address"}
        parts.append("## Authors and licences\n" + source_table(columns, authors, recorded_stages))
        parts += not_recorded(stages_lacking(recorded_stages, "attributions"))
    if files := with_stages(recorded_stages, "packages"):
        files = [({**file, "sha256": f"`{file['sha256']}`"}, names) for file, names in files]
        columns = {"name": "file", "sha256": "SHA-256", "url": "address"}
        parts.append("## Files that the images come from\n" + source_table(columns, files, recorded_stages))
        parts += not_recorded(stages_lacking(recorded_stages, "packages"))
    for note in dict.fromkeys(attribution(model.meta["data"]["name"]) for model in recorded_stages.values()):
        parts += [f"Show with images of the model: {note}"] if note else []
    for name, model in recorded_stages.items():
        if init := model.meta.get("init"):
            subject = "Training" if len(stages) == 1 else f"Training of {name}"
            parts.append(f"{subject} started from a model with digest `{init['digest']}`, whose data count as well.")
    return "\n\n".join(parts) + "\n"


def title_of(stages: Stages) -> str:
    """Return the stages in words, such as "a transformer" or "dvae, clip and transformer"."""
    return join_names(stages) if len(stages) > 1 else f"a {next(iter(stages.values())).kind}"


def stage_table(stages: Stages) -> str:
    """Return a table of the stages: data set, number and digest of the training records, or why they are unknown."""
    rows = []
    for name, model in stages.items():
        if "data" not in model.meta:
            rows.append((name, f"{NOT_RECORDED}: {unknown_reason(model)}", NOT_RECORDED, NOT_RECORDED))
            continue
        train = model.meta.get("records", {}).get("train")
        count_and_digest = (f"{train['records']:,}", f"`{train['digest']}`") if train else (NOT_RECORDED, NOT_RECORDED)
        rows.append((name, f"`{model.meta['data']['name']}`", *count_and_digest))
    return table(["stage", "data set", "training records", "digest"], rows)


def settings_part(recorded_stages: Stages) -> Iterator[str]:
    """Yield a table of the settings that the stages have in common, and one of those that differ."""
    data_sets = group_stages({name: model.meta["data"]["name"] for name, model in recorded_stages.items()})
    if (common := common_settings(recorded_stages)) or len(recorded_stages) == 1:
        single_opening = f"Data set `{data_sets[0][1]}`, with these settings:"
        opening = single_opening if len(data_sets) == 1 else "Settings that the data sets have in common:"
        yield f"{opening}\n\n" + table(["setting", "value"], common)
    if differing := differing_settings(recorded_stages):
        rows = [(setting, *(values.get(name, "not set") for name in recorded_stages)) for setting, values in differing]
        yield f"## Settings that differ\n{table(['setting', *recorded_stages], rows)}"


def records_part(recorded_stages: Stages) -> Iterator[str]:
    """Yield a table of the records of each split, and what was left out."""
    records = group_stages({name: split_digests(model) for name, model in recorded_stages.items()})
    stages_differ = len(records) > 1
    rows = []
    for names, splits in records:
        for split, (count, digest) in splits.items():
            rows.append((*([join_names(names)] if stages_differ else []), split, f"{count:,}", f"`{digest}`"))
        if stages_differ and not splits:
            rows.append((join_names(names), *[NOT_RECORDED] * 3))
    yield "## Records\n" + table([*(["stages"] if stages_differ else []), "split", "records", "digest"], rows)
    left_out = group_stages({name: omissions(model) for name, model in recorded_stages.items()})
    if len(left_out) == 1:
        yield from left_out[0][1]
    else:
        yield "\n".join(f"- {join_names(names)}: {' '.join(sentences)}" for names, sentences in left_out)


def counts_part(recorded_stages: Stages) -> Iterator[str]:
    """Yield a table of the training records by each property, with a column for each stage if they differ."""
    for name, groups in counts_by_stage(recorded_stages).items():
        if len(groups) == 1:
            rows: Iterable[Sequence[object]] = count_rows(groups[0][1] or {})
            yield f"## By {name}\n" + table([name, "training records"], rows)
        else:
            headers = [join_names(names) for names, _ in groups]
            yield f"## By {name}\n" + table([name, *headers], count_columns([counts for _, counts in groups]))


def not_recorded(names: Sequence[str]) -> list[str]:
    """Return a sentence on stages that lack a record; none if there are none."""
    return [f"For {join_names(names)}: {NOT_RECORDED}."] if names else []


def source_table(
    columns: Mapping[str, str], rows: Sequence[tuple[Mapping[str, str], list[str]]], recorded_stages: Stages
) -> str:
    """Return a table of authors or files. If not all stages have the same, the last column names those that do."""
    stages_differ = any(len(names) < len(recorded_stages) for _, names in rows)
    cells = [
        [*(row.get(key, "") for key in columns), *([join_names(names)] if stages_differ else [])] for row, names in rows
    ]
    return table([*columns.values(), *(["stages"] if stages_differ else [])], cells)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; line breaks and vertical bars in cells are escaped."""
    cells = [[" ".join(str(cell).replace("|", "\\|").split()) for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
