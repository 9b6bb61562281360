"""Model card of an exported checkpoint: models, data, recipe, licence, figures and limits, as its files record them."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dalle import checkpoint
from dalle.data import attribution
from dalle.weights_files import read_weights_shapes, weights_files

CARD, NOTICE, LICENCE = "README.md", "NOTICE", "LICENSE"
RUN_CONFIG = "config.yaml"  # of the run folder that a model was trained in
SHARE_ALIKE, ATTRIBUTION = "CC BY-SA 4.0", "CC BY 4.0"
ADDRESSES = {
    SHARE_ALIKE: "https://creativecommons.org/licenses/by-sa/4.0/legalcode",
    ATTRIBUTION: "https://creativecommons.org/licenses/by/4.0/legalcode",
}
SIZES = ("width", "depth", "heads", "image_width", "image_depth", "vocabulary", "grid", "text_positions")


def write_model_card(
    folder: Path,
    components: Mapping[str, Path],
    metrics: Mapping[str, float],
    notes: str = "",
    recipes: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write README.md for the models in `components`, and NOTICE and LICENSE if their data have authors to name.

    metrics: numbers of an evaluation of the models.
    notes: Markdown to append, such as samples. Limits in it replace those that follow from the models' sizes and data.
    recipes: the settings of the stage that trained each model, as `read_recipe` returns them.
    """
    metas = {kind: checkpoint.read_json(path / checkpoint.CONFIG) for kind, path in components.items()}
    main = metas.get("transformer", next(iter(metas.values())))["meta"]
    authors = main.get("attributions", [])
    licence = strictest_licence(authors)
    parts = [front_matter(licence), "# DALL-E", introduction(components), models_table(components, metas)]
    parts += [usage_section(components)]
    parts += [training_section(main), records_section(metas), recipe_section(recipes or {})]
    parts += [data_section(main, licence), figures_section(metrics)]
    if not re.search(r"^#+ .*(limits|cannot|can't)", notes, re.IGNORECASE | re.MULTILINE):
        parts.append(limits_section(metas, main))
    card = "\n\n".join(part for part in (*parts, notes.strip()) if part)
    (folder / CARD).write_text(card + "\n", encoding="utf-8")
    if authors:
        (folder / NOTICE).write_text(notice(authors, licence), encoding="utf-8")
    if licence in ADDRESSES:
        text = f"The weights in this folder are licensed under {licence}.\n{ADDRESSES[licence]}\n\nNOTICE names the "
        text += "authors of the images that they were trained on. The code has a licence of its own.\n"
        (folder / LICENCE).write_text(text, encoding="utf-8")


def strictest_licence(authors: list[dict[str, str]]) -> str:
    """Return the licence that weights trained on these works carry: share-alike, else attribution, else ""."""
    licences = {author.get("licence", "").upper() for author in authors}
    if any(licence.startswith("CC-BY-SA") for licence in licences):
        return SHARE_ALIKE
    return ATTRIBUTION if any(licence.startswith("CC-BY") for licence in licences) else ""


def front_matter(licence: str) -> str:
    """Return the metadata block that model hubs read."""
    lines = [f"license: {licence.lower().replace(' ', '-')}"] if licence else []
    return "\n".join(["---", *lines, "pipeline_tag: text-to-image", "tags:", "- dall-e", "- pytorch", "---"])


def introduction(components: Mapping[str, Path]) -> str:
    kinds = {
        "dvae": "a discrete VAE",
        "transformer": "a decoder-only transformer",
        "clip": "a CLIP that ranks samples",
        "decoder": "a diffusion decoder for the tokens of a discrete VAE",
    }
    return f"DALL-E 1 (Ramesh et al. 2021): {', '.join(text for kind, text in kinds.items() if kind in components)}."


def usage_section(components: Mapping[str, Path]) -> str:
    """Return code that loads the models and uses them."""
    classes = {"transformer": "DALLE", "dvae": "DiscreteVAE", "clip": "CLIP"}
    name = next((classes[kind] for kind in classes if kind in components), "")
    calls = {
        "DALLE": 'result = model.generate("a red apple", candidates=64, keep=8)\nresult.images[0].save("apple.png")',
        "DiscreteVAE": "tokens = model.encode(images)  # (b, 3, h, w) in [0, 1]\nimages = model.decode(tokens)",
        "CLIP": 'scores = model.score(images, ["a red apple", "an owl"])',
    }
    if not name:
        return ""
    load = f'from dalle import {name}\n\nmodel = {name}.from_pretrained("this folder, or user/name of the hub")'
    return f"## Use\n```python\n{load}\n{calls[name]}\n```"


def models_table(components: Mapping[str, Path], configs: Mapping[str, Any]) -> str:
    """Return a table of the models: parameters, sizes, updates of the last run and file sizes."""
    lines = ["| model | parameters | sizes | updates of the last run | weights |", "|---|---:|---|---:|---:|"]
    for kind, path in components.items():
        shapes = read_weights_shapes(path)
        model, meta = configs[kind]["model"], configs[kind].get("meta") or {}
        sizes = ", ".join(f"{size} {model[size]}" for size in SIZES if size in model)
        megabytes = sum(file.stat().st_size for file in weights_files(path)) / 1e6
        parameters = sum(math.prod(shape) for shape in shapes.values())
        steps = f"{meta['step']:,}" if isinstance(meta.get("step"), int) else ""
        lines.append(f"| {kind} | {parameters:,} | {sizes} | {steps} | {megabytes:.1f} MB |")
    return "\n".join(lines)


def training_section(meta: Mapping[str, Any]) -> str:
    """Describe the training data, as recorded by the checkpoint."""
    if "name" not in meta.get("data", {}):
        return ""
    data = {name: value for name, value in meta["data"].items() if name not in ("name", "path")}
    return f"## Training\n`data={meta['data']['name']}`, seed {meta.get('seed', 0)}; {json.dumps(data)}."


def records_section(configs: Mapping[str, Any]) -> str:
    """Return a table of the records that each model was trained on and validated on, with their digests."""
    lines = []
    for kind, config in configs.items():
        records = (config.get("meta") or {}).get("records")
        for split, record in records.items() if isinstance(records, dict) else ():
            if isinstance(record, dict) and isinstance(record.get("records"), int):
                lines.append(f"| {kind} | {split} | {record['records']:,} | `{record.get('digest', '')}` |")
    return "\n".join(["| model | split | records | digest |", "|---|---|---:|---|", *lines]) if lines else ""


def read_recipe(folder: Path) -> dict[str, Any]:
    """Return the settings of the stage that trained the model in `folder`; {} if it is not a run folder."""
    try:
        settings = yaml.safe_load((folder / RUN_CONFIG).read_text(encoding="utf-8"))
        stage = settings["stage"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return {}
    return stage if isinstance(stage, dict) else {}


def recipe_section(recipes: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table of the settings that each model was trained with."""
    lines = []
    for kind, stage in recipes.items():
        optimizer = stage.get("optimizer") or {}
        rate = optimizer.get("learning_rate") or {}
        change = "" if rate.get("kind") == "constant" else f" to {rate.get('end')} ({rate.get('kind')})"
        cells = [f"{stage[name]:,}" if isinstance(stage.get(name), int) else "" for name in ("steps", "batch_size")]
        cells += [str(optimizer.get("kind", "")), f"{rate.get('start')}{change}" if rate else ""]
        cells += [str(stage.get(name, "")) for name in ("precision", "transform")]
        if stage:
            lines.append(f"| {kind} | {' | '.join(cells)} |")
    head = "| model | updates | images an update | optimizer | learning rate | precision | transform |"
    return "\n".join(["## Recipe", head, "|---|---:|---:|---|---|---|---|", *lines]) if lines else ""


def data_section(meta: Mapping[str, Any], licence: str) -> str:
    """List the authors of the training data, and the attribution to show with samples."""
    authors = meta.get("attributions", [])
    note = attribution(meta.get("data", {}).get("name", ""))
    if not authors and not note:
        return ""
    lines = ["## Data and licence"]
    if licence:
        lines.append(f"The weights carry the strictest licence of their data, [{licence}]({ADDRESSES[licence]}).")
    if note:
        lines.append(f'Show with samples: "{note}"')
    if authors:
        lines += ["", "| part | author | licence |", "|---|---|---|"]
        lines += [
            f"| {next(iter(author.values()), '')} | {_linked(author)} | {author.get('licence', '')} |"
            for author in authors
        ]
    return "\n".join(lines)


def figures_section(metrics: Mapping[str, float]) -> str:
    """Return a table of the figures, or a sentence that there are none."""
    if not metrics:
        return "## Figures\nNone were measured: run evaluate.py before the export."
    lines = ["## Figures", "| measured by evaluate.py | |", "|---|---:|"]
    return "\n".join([*lines, *(f"| {name} | {value:.4g} |" for name, value in metrics.items())])


def limits_section(configs: Mapping[str, Any], main: Mapping[str, Any]) -> str:
    """Return the limits that follow from the models' sizes and training data."""
    data, transformer = main.get("data") or {}, configs.get("transformer", {}).get("model", {})
    lines = []
    if "image_size" in data:
        lines.append(f"- It was trained on images of {data['image_size']} x {data['image_size']} pixels.")
    if "text_positions" in transformer:
        lines.append(f"- A caption has at most {transformer['text_positions'] - 1} tokens.")
    if words := main.get("caption_words"):
        lines.append(f"- Its training captions have {len(words):,} different words; any other word is unknown to it.")
    lines.append("- It knows what its training data show, and repeats their view of the world.")
    return "\n".join(["## Limits", *lines])


def notice(authors: list[dict[str, str]], licence: str) -> str:
    """Return the text of NOTICE: every author, licence and address."""
    lines = ["The models in this folder were trained on images by these authors:", ""]
    lines += ["- " + ", ".join(str(value) for value in author.values() if value) for author in authors]
    return "\n".join([*lines, *(["", f"The weights are licensed under {licence}."] if licence else [])]) + "\n"


def _linked(author: Mapping[str, str]) -> str:
    name = author.get("author", "")
    return f"[{name}]({author['url']})" if author.get("url") else name
