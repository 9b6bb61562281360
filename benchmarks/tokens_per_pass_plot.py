"""Plot of the tokens that a pass of parallel decoding keeps, by window and guess, with a panel for each model."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from PIL import Image


def plot_tokens_per_pass(rows: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Plot rows of `benchmarks/parallel_decoding.py`. Needs matplotlib, see `dalle.evaluation.plots.check_matplotlib`.

    There is a line for each guess, and for each precision and batch size if rows have several.
    """
    from matplotlib.figure import Figure

    parallel = [row for row in rows if row["decoding"] != "sequential"]
    models = list(dict.fromkeys(row["model"] for row in parallel))
    several = len({(row["precision"], row["batch"]) for row in parallel}) > 1
    figure = Figure(figsize=(1 + 3.6 * len(models), 3.8), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
    for panel, model in zip(panels, models, strict=True):
        lines: dict[str, dict[int, float]] = {}
        for row in (row for row in parallel if row["model"] == model):
            label = row["decoding"] + (f", {row['precision']}, batch {row['batch']}" if several else "")
            lines.setdefault(label, {})[row["window"]] = row["tokens_per_pass"]
        for label, kept in lines.items():
            windows = sorted(kept)
            panel.plot(windows, [kept[window] for window in windows], marker="o", markersize=4, label=label)
        windows = sorted({row["window"] for row in parallel})
        panel.set_xscale("log", base=2)
        panel.set_xticks(windows, [str(window) for window in windows])
        panel.minorticks_off()
        panel.axhline(1, color="0.55", linewidth=0.8)  # sequential decoding
        panel.set_title(model)
        panel.set_xlabel("window")
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("tokens kept per pass")
    panels[0].legend(title="guess", frameon=False)
    buffer = BytesIO()
    figure.savefig(buffer)
    return Image.open(buffer).convert("RGB")
