"""metrics.md: the evaluation record as a Markdown page."""

import json
from pathlib import Path

from dalle.evaluation.metrics import METRICS
from dalle.evaluation.record import Part, Record


def write_page(record: Record, path: Path) -> None:
    """Write the page of `record` to `path`, next to the folder with its images."""
    data = record.subject["data"]
    models = ", ".join(f"{name} `{digest}`" for name, digest in record.subject["models"].items())
    lines = [
        "# Evaluation",
        "",
        f"Models: {models}. Data: `{data['name']}`, held-out pictures of {data['image_size']} pixels.",
    ]
    for name in (name for name in METRICS if name in record.parts):
        lines += ["", *_section(METRICS[name].note, record.parts[name], record.numbers)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _section(title: str, part: Part, numbers: dict[str, float]) -> list[str]:
    lines = [f"## {title}", "", part.about, ""]
    lines += [f"> {note}\n" for note in part.notes]
    if part.table:
        lines += [part.table.rstrip(), ""]
    else:
        lines += ["| | |", "|---|---|", *(f"| `{name}` | {_short(numbers[name])} |" for name in part.names), ""]
    lines += [f"![{Path(picture).stem}]({picture})\n" for picture in part.pictures]
    settings = json.dumps(part.settings, indent=1, ensure_ascii=False)
    return [*lines, "<details><summary>Settings</summary>", "", "```json", settings, "```", "", "</details>"]


def _short(value: float) -> str:
    """Format with at most four decimals, without trailing zeros."""
    return f"{value:.4f}".rstrip("0").rstrip(".")
