"""Training data of a model as Croissant metadata (mlcommons.org/croissant), in JSON-LD."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dalle.data import attribution
from dalle.data.audit.stage_data import (
    NOT_RECORDED,
    Stages,
    common_settings,
    count_rows,
    counts_by_stage,
    differing_settings,
    group_stages,
    join_names,
    omissions,
    split_digests,
    stages_with_data,
    unknown_reason,
    with_stages,
)


def croissant(stages: Stages) -> dict[str, Any]:
    """Return the training data of a model's stages as Croissant metadata; at least one stage must record them.

    They are the sources as files with their SHA-256, the number of training records by style and so on as record sets,
    and the omissions and settings in fields of the vocabulary for responsible AI. What differs between stages names
    them; a record set lists the stages if there are several. Needs the package mlcroissant.
    """
    import mlcroissant as mlc

    recorded_stages = stages_with_data(stages)
    data_sets = list(dict.fromkeys(model.meta["data"]["name"] for model in recorded_stages.values()))
    authors = [author for author, _ in with_stages(recorded_stages, "attributions")]
    left_out = sentences_by_stage({name: omissions(model) for name, model in recorded_stages.items()})
    notes = [attribution(name) for name in data_sets]
    languages = {
        language for model in recorded_stages.values() for language in model.meta.get("counts", {}).get("language", {})
    }
    counts = counts_by_stage(recorded_stages)
    metadata = mlc.Metadata(
        conforms_to=["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"],
        name=f"dalle-{'-'.join(data_sets)}",
        description=" ".join(filter(None, (*description(stages), *left_out, *notes))),
        version="1.0.0",
        license=sorted({author["licence"] for author in authors if author.get("licence")}) or None,
        creators=[mlc.Organization(name=author.get("author", ""), url=author.get("url")) for author in authors],
        cite_as="; ".join(citations(recorded_stages)),
        in_language=sorted(languages) or None,
        distribution=[
            mlc.FileObject(
                id=name,
                name=name,
                content_url=file["url"],
                sha256=file["sha256"],
                encoding_formats=["application/gzip"],
            )
            for name, file in files(recorded_stages)
        ],
        record_sets=[
            *([stages_record_set(stages)] if len(stages) > 1 else []),
            *(
                counts_record_set(property_name, groups)
                for property_name, groups in counts.items()
                if any(numbers for _, numbers in groups)
            ),
        ],
        data_preprocessing_protocol=protocol(recorded_stages),
        data_collection_missing_data=" ".join(left_out),
    )
    return metadata.to_json()


def description(stages: Stages) -> Iterator[str]:
    """Yield the sentences of the description: records of each split, largest counts, and stages without a record."""
    recorded_stages = stages_with_data(stages)
    for names, splits in group_stages({name: split_digests(model) for name, model in recorded_stages.items()}):
        subject = join_names(names) if len(stages) > 1 else f"a {next(iter(stages.values())).kind}"
        verb = "were" if len(names) > 1 else "was"
        phrases = [
            f"{count:,} records of the split {split} (digest {digest})" for split, (count, digest) in splits.items()
        ]
        yield f"Image-caption pairs that {subject} {verb} trained on: {', '.join(phrases) or f'number {NOT_RECORDED}'}."
    for name, groups in counts_by_stage(recorded_stages).items():
        for names, counts in groups:
            stage_note = f" of {join_names(names)}" if len(groups) > 1 else ""
            listed = NOT_RECORDED if counts is None else ", ".join(" ".join(row) for row in count_rows(counts))
            yield f"Training records{stage_note} by {name}: {listed}."
    for name, model in stages.items():
        if name not in recorded_stages:
            yield f"The training data of {name} are {NOT_RECORDED}: {unknown_reason(model)}."


def citations(recorded_stages: Stages) -> Iterator[str]:
    """Yield the data set and the digest of its training records, once for all stages that have the same."""
    citation_by_stage = {
        name: f"data={model.meta['data']['name']}, digest {split_digests(model).get('train', (0, 'unknown'))[1]}"
        for name, model in recorded_stages.items()
    }
    groups = group_stages(citation_by_stage)
    for names, citation in groups:
        yield f"{citation} ({join_names(names)})" if len(groups) > 1 else citation


def sentences_by_stage(sentences: Mapping[str, list[str]]) -> list[str]:
    """Return sentences, once if they are the same for all stages; otherwise the first names the stages."""
    groups = group_stages(sentences)
    if len(groups) == 1:
        return groups[0][1]
    return [f"{join_names(names)}: {' '.join(stage_sentences)}" for names, stage_sentences in groups]


def files(recorded_stages: Stages) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield name and entry of each published file. Those of one name that differ are numbered."""
    name_counts: dict[str, int] = {}
    for file, _ in with_stages(recorded_stages, "packages"):
        name = file["name"]
        name_counts[name] = name_counts.get(name, 0) + 1
        yield (name if name_counts[name] == 1 else f"{name}-{name_counts[name]}"), file


def protocol(recorded_stages: Stages) -> list[str]:
    """Return a line for each setting; those that differ between stages name them."""
    lines = [f"{setting}: {value}" for setting, value in common_settings(recorded_stages)]
    for setting, values in differing_settings(recorded_stages):
        lines += [f"{join_names(names)}: {setting}: {value}" for names, value in group_stages(values)]
    return lines


def stages_record_set(stages: Stages) -> Any:
    """Return a Croissant record set with a record for each stage and split."""
    rows = []
    for name, model in stages.items():
        data_set = model.meta.get("data", {}).get("name", NOT_RECORDED)
        splits = split_digests(model) or {NOT_RECORDED: (0, NOT_RECORDED)}
        rows += [
            {"stage": name, "data_set": data_set, "split": split, "records": count, "digest": digest}
            for split, (count, digest) in splits.items()
        ]
    return record_set("stages", "Records of each split that a stage was trained on; 0 if they are not recorded.", rows)


def counts_record_set(name: str, groups: Sequence[tuple[list[str], Mapping[str, int] | None]]) -> Any:
    """Return a Croissant record set of the values of a property, and how many training records have each.

    If the stages differ, each record also names the stages that it is about.
    """
    rows = [
        {**({"stages": join_names(names)} if len(groups) > 1 else {}), name: value, "records": count}
        for names, counts in groups
        for value, count in (counts or {}).items()
    ]
    text = f"Number of training records by {name}; a record may be counted under several."
    return record_set(f"counts-by-{name}", text, rows)


def record_set(key: str, text: str, rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return a Croissant record set with these rows, all of them with the same fields."""
    import mlcroissant as mlc

    types = {
        field: mlc.DataType.INTEGER if isinstance(value, int) else mlc.DataType.TEXT for field, value in rows[0].items()
    }
    return mlc.RecordSet(
        id=key,
        name=key,
        description=text,
        fields=[
            mlc.Field(id=f"{key}/{field}", name=field, data_types=[data_type]) for field, data_type in types.items()
        ],
        data=[{f"{key}/{field}": value for field, value in row.items()} for row in rows],
    )
