"""metrics.md: the content of metrics.json as a Markdown page."""

import json
from pathlib import Path

from dalle.evaluation.metrics import METRICS
from dalle.evaluation.metrics_file import MetricEntry, MetricsFile


def write_page(content: MetricsFile, path: Path) -> None:
    """Write the page of `content` to `path`, next to the folder with its images."""
    data = content.context["data"]
    models = ", ".join(f"{name} `{digest}`" for name, digest in content.context["models"].items())
    lines = [
        "# Evaluation",
        "",
        f"Models: {models}. Data: `{data['name']}`, held-out images of {data['image_size']} pixels.",
    ]
    for name in (name for name in METRICS if name in content.metrics):
        lines += ["", *_section(METRICS[name].note, content.metrics[name], content.numbers)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _section(title: str, entry: MetricEntry, numbers: dict[str, float]) -> list[str]:
    lines = [f"## {title}", "", entry.description, ""]
    lines += [f"> {note}\n" for note in entry.notes]
    if entry.table:
        lines += [entry.table.rstrip(), ""]
    rows = [f"| `{name}` | {_format_number(numbers[name])} |" for name in entry.names]
    if entry.table and rows:  # the table may lack some
        lines += ["<details><summary>All numbers</summary>", "", "| | |", "|---|---|", *rows, "", "</details>", ""]
    elif rows:
        lines += ["| | |", "|---|---|", *rows, ""]
    lines += [f"![{Path(image).stem}]({image})\n" for image in entry.images]
    settings = json.dumps(entry.settings, indent=1, ensure_ascii=False)
    return [*lines, "<details><summary>Settings</summary>", "", "```json", settings, "```", "", "</details>"]


def _format_number(value: float) -> str:
    """Format a number with four decimals without trailing zeros, and one below .01 with four significant digits."""
    return f"{value:.4g}" if abs(value) < 0.01 else f"{value:.4f}".rstrip("0").rstrip(".")
