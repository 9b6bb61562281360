"""Training data of several stages compared: what they have in common, and where they differ."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from dalle.config_validation import flatten
from dalle.data.audit.provenance import Provenance

T = TypeVar("T")
Stages = Mapping[str, Provenance]  # by the name of the stage

ORDER = ("dvae", "transformer", "clip", "decoder")  # of stages
NOT_RECORDED = "not recorded"
MAX_ROWS = 40  # of a table of counts
PATHS = ("path", "captions", "opt_out")  # settings that name files of the machine that trained


def name_stages(models: Sequence[Provenance]) -> dict[str, Provenance]:
    """Name models after their kinds; where several are of one kind, those in a subfolder also after the folder."""
    models = sorted(models, key=lambda model: (*ORDER, model.kind).index(model.kind))
    kinds = [model.kind for model in models]
    top = min((model.folder for model in models), key=lambda folder: len(folder.parts))
    parents = {model.folder.parent for model in models}
    are_unique = [kinds.count(model.kind) == 1 or (model.folder == top and top in parents) for model in models]
    return {
        model.kind if is_unique else f"{model.kind}-{model.folder.name}": model
        for model, is_unique in zip(models, are_unique, strict=True)
    }


def stages_with_data(stages: Stages) -> dict[str, Provenance]:
    """Return the stages that record their training data."""
    return {name: model for name, model in stages.items() if "data" in model.meta}


def unknown_reason(model: Provenance) -> str:
    """Return a phrase that says why the training data of a model are unknown."""
    imported = model.meta.get("imported")
    return f"its weights were imported from {imported}" if imported else "the checkpoint has no record of it"


def group_stages(values: Mapping[str, T]) -> list[tuple[list[str], T]]:
    """Group the stages that have equal values: [(stage names, value), ...], in the order of first occurrence.

    values: by the name of the stage.
    """
    groups: list[tuple[list[str], T]] = []
    for name, value in values.items():
        equal_names = next((names for names, group_value in groups if group_value == value), None)
        if equal_names is None:
            groups.append(([name], value))
        else:
            equal_names.append(name)
    return groups


def split_digests(model: Provenance) -> dict[str, tuple[int, str]]:
    """Return the number of records and the digest of each split."""
    return {split: (record["records"], record["digest"]) for split, record in model.meta.get("records", {}).items()}


def settings(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the data set by name, without those that are not set or name files."""
    return {
        name: ", ".join(map(str, value)) if isinstance(value, list) else value
        for name, value in flatten(data).items()
        if name not in ("name", *PATHS) and value not in ("", None, [])
    }


def common_settings(recorded_stages: Stages) -> list[tuple[str, Any]]:
    """Return name and value of each setting that all stages have in common."""
    first_settings, *other_settings = [settings(model.meta["data"]) for model in recorded_stages.values()]
    return [
        (name, value)
        for name, value in first_settings.items()
        if all((name, value) in settings_of_stage.items() for settings_of_stage in other_settings)
    ]


def differing_settings(recorded_stages: Stages) -> list[tuple[str, dict[str, Any]]]:
    """Return name and value by stage of each setting, the data set's name included, that differs between stages."""
    settings_by_stage = {
        stage: {"data set": model.meta["data"]["name"], **settings(model.meta["data"])}
        for stage, model in recorded_stages.items()
    }
    names = dict.fromkeys(name for values in settings_by_stage.values() for name in values)
    by_name = {
        name: {stage: settings_by_stage[stage][name] for stage in settings_by_stage if name in settings_by_stage[stage]}
        for name in names
    }
    return [
        (name, values)
        for name, values in by_name.items()
        if len(values) < len(recorded_stages) or len(group_stages(values)) > 1
    ]


def counts_by_stage(recorded_stages: Stages) -> dict[str, list[tuple[list[str], dict[str, int] | None]]]:
    """Return the numbers of training records by each property, grouped by stages; None: not recorded."""
    counts = {stage: model.meta.get("counts", {}) for stage, model in recorded_stages.items()}
    properties = dict.fromkeys(name for numbers in counts.values() for name in numbers)
    return {name: group_stages({stage: numbers.get(name) for stage, numbers in counts.items()}) for name in properties}


def count_rows(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return rows of names and counts, the largest first; those beyond `MAX_ROWS` are added up."""
    return [(name, count) for name, count in count_columns([counts])]


def count_columns(columns: Sequence[Mapping[str, int] | None]) -> list[tuple[str, ...]]:
    """Return rows of a name and its count in each column, the largest first; those beyond `MAX_ROWS` are added up.

    None is a column whose counts are not recorded.
    """
    names = {
        name: max((counts or {}).get(name, 0) for counts in columns) for counts in columns for name in counts or {}
    }
    ordered = sorted(names, key=lambda name: -names[name])
    rows = [(name, [name]) for name in ordered[:MAX_ROWS]]
    if remaining_names := ordered[MAX_ROWS:]:
        rows.append((f"{len(remaining_names)} other{'s' if len(remaining_names) > 1 else ''}", remaining_names))
    return [
        (
            label,
            *(
                NOT_RECORDED if counts is None else f"{sum(counts.get(name, 0) for name in names_of_row):,}"
                for counts in columns
            ),
        )
        for label, names_of_row in rows
    ]


def with_stages(recorded_stages: Stages, entry: str) -> list[tuple[dict[str, Any], list[str]]]:
    """Return all distinct items of an entry of the meta, such as `attributions`, each with the stages that have it."""
    item_stages: list[tuple[dict[str, Any], list[str]]] = []
    for stage, model in recorded_stages.items():
        for item in model.meta.get(entry, []):
            stage_names = next((names for known_item, names in item_stages if known_item == item), None)
            if stage_names is None:
                item_stages.append((item, [stage]))
            elif stage not in stage_names:
                stage_names.append(stage)
    return item_stages


def stages_lacking(recorded_stages: Stages, entry: str) -> list[str]:
    """Return the stages without an entry of the meta that another stage with the same data set has."""
    data_sets_with_entry = {model.meta["data"]["name"] for model in recorded_stages.values() if model.meta.get(entry)}
    return [
        name
        for name, model in recorded_stages.items()
        if not model.meta.get(entry) and model.meta["data"]["name"] in data_sets_with_entry
    ]


def omissions(model: Provenance) -> list[str]:
    """Return sentences on what was left out of the data set, and on the opt-out list."""
    opt_out = "yes" if model.meta["data"].get("opt_out") else "none"
    return [f"Left out of the whole data set: {'; '.join(model.left_out())}.", f"Opt-out list: {opt_out}."]


def join_names(names: Iterable[str]) -> str:
    """Join names in words: "dvae, clip and transformer"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
