"""Model card of an exported checkpoint: models, training data, licence and figures, as the checkpoint records them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dalle import checkpoint
from dalle.data import attribution
from dalle.weights_files import read_weights_shapes, weights_files

CARD, NOTICE, LICENCE = "README.md", "NOTICE", "LICENSE"
SHARE_ALIKE, ATTRIBUTION = "CC BY-SA 4.0", "CC BY 4.0"
ADDRESSES = {
    SHARE_ALIKE: "https://creativecommons.org/licenses/by-sa/4.0/legalcode",
    ATTRIBUTION: "https://creativecommons.org/licenses/by/4.0/legalcode",
}
SIZES = ("width", "depth", "heads", "image_width", "image_depth", "vocabulary", "grid", "text_positions")


def write_model_card(
    folder: Path, components: Mapping[str, Path], metrics: Mapping[str, float], notes: str = ""
) -> None:
    """Write README.md for the models in `components`, and NOTICE and LICENSE if their data have authors to name.

    metrics: numbers of an evaluation of the models.
    notes: Markdown to append, such as limits and samples.
    """
    metas = {kind: checkpoint.read_json(path / checkpoint.CONFIG) for kind, path in components.items()}
    main = metas.get("transformer", next(iter(metas.values())))["meta"]
    authors = main.get("attributions", [])
    licence = strictest_licence(authors)
    parts = [front_matter(licence), "# DALL-E", introduction(components), models_table(components, metas)]
    parts += [training_section(main), data_section(main, licence)]
    if metrics:
        parts.append(figures_section(metrics))
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
    if any(each.startswith("CC-BY-SA") for each in licences):
        return SHARE_ALIKE
    return ATTRIBUTION if any(each.startswith("CC-BY") for each in licences) else ""


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


def models_table(components: Mapping[str, Path], configs: Mapping[str, Any]) -> str:
    """Return a table of the models: parameters, sizes, updates and file sizes."""
    lines = ["| model | parameters | sizes | updates | weights |", "|---|---:|---|---:|---:|"]
    for kind, path in components.items():
        shapes = read_weights_shapes(path)
        model, meta = configs[kind]["model"], configs[kind].get("meta") or {}
        sizes = ", ".join(f"{size} {model[size]}" for size in SIZES if size in model)
        megabytes = sum(file.stat().st_size for file in weights_files(path)) / 1e6
        parameters = sum(math.prod(shape) for shape in shapes.values())
        steps = f"{meta['step']:,}" if "step" in meta else ""
        lines.append(f"| {kind} | {parameters:,} | {sizes} | {steps} | {megabytes:.1f} MB |")
    return "\n".join(lines)


def training_section(meta: Mapping[str, Any]) -> str:
    """Describe the training data, as recorded by the checkpoint."""
    if "data" not in meta:
        return ""
    data = {name: value for name, value in meta["data"].items() if name not in ("name", "path")}
    lines = ["## Training", f"`data={meta['data']['name']}`, seed {meta.get('seed', 0)}; {json.dumps(data)}."]
    lines += [
        f"- {split}: {record['records']:,} records, digest `{record['digest']}`"
        for split, record in meta.get("records", {}).items()
    ]
    return "\n".join(lines)


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
        lines += [f"| {next(iter(each.values()))} | {_linked(each)} | {each.get('licence', '')} |" for each in authors]
    return "\n".join(lines)


def figures_section(metrics: Mapping[str, float]) -> str:
    lines = ["## Figures", "| measured by evaluate.py | |", "|---|---:|"]
    return "\n".join([*lines, *(f"| {name} | {value:.4g} |" for name, value in metrics.items())])


def notice(authors: list[dict[str, str]], licence: str) -> str:
    """Return the text of NOTICE: every author, licence and address."""
    lines = ["The models in this folder were trained on images by these authors:", ""]
    lines += ["- " + ", ".join(str(value) for value in author.values() if value) for author in authors]
    return "\n".join([*lines, *(["", f"The weights are licensed under {licence}."] if licence else [])]) + "\n"


def _linked(author: Mapping[str, str]) -> str:
    name = author.get("author", "")
    return f"[{name}]({author['url']})" if author.get("url") else name
