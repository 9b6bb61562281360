"""Plots of sweeps and of run comparisons, with matplotlib, which is an extra: pip install "dalle[eval]"."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dalle.ablations.run_results import metrics_of
from dalle.ablations.sweep import PowerLaw, Sweep

Curve = Sequence[Mapping[str, float]]
"""Validation lines of one run, each with its step."""

HEIGHT, PANEL_WIDTH, DPI = 3.4, 4.2, 80  # inches, inches, dots per inch: small files


def plot_sweep(sweep: Sweep, path: Path) -> None:
    """Plot a sweep to the image file `path`: metric against steps, power law, and final metrics, one dot per run."""
    from matplotlib import colormaps

    law = sweep.power_law()
    has_curves = any(len(result.curve) > 1 for result in sweep.finished)
    figure, panels = _panels(has_curves + (law is not None) + len(sweep.metrics))
    palette = colormaps["tab10"]
    colours = {value: palette(number % 10) for number, value in enumerate(sweep.values)}
    free_panels = list(panels)
    if has_curves:
        _plot_curves(free_panels.pop(0), sweep, colours)
    if law is not None:
        _plot_power_law(free_panels.pop(0), sweep, law, colours)
    for panel, metric in zip(free_panels, sweep.metrics, strict=True):
        for x, value in enumerate(sweep.values):
            runs = metric.runs.get(value, ())
            panel.plot([x] * len(runs), runs, "o", color=colours[value], alpha=0.6)
            if runs:
                panel.plot([x - 0.25, x + 0.25], [metric.mean(value)] * 2, color=colours[value], linewidth=2)
        tick_labels = [f"{value} ◂" if value == sweep.ablation.paper_value else value for value in sweep.values]
        panel.set_xticks(range(len(tick_labels)), tick_labels, rotation=25, ha="right", fontsize=8)
        panel.set_title(f"{metric.title} ({metric.better} is better)", fontsize=10)
        panel.grid(axis="y", alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def plot_runs(curves: Mapping[str, Curve], path: Path) -> None:
    """Plot the runs to the image file `path`: a panel for each metric that all runs have, with a line for each run.

    curves: run name -> validation lines.
    """
    first_metrics, *other_metrics = [metrics_of(curve[-1]) for curve in curves.values()]
    shared_names = [name for name in first_metrics if all(name in metrics for metrics in other_metrics)]
    figure, panels = _panels(max(1, len(shared_names)))
    path.parent.mkdir(parents=True, exist_ok=True)
    for panel, name in zip(panels, shared_names, strict=False):
        for run, curve in curves.items():
            points = [(line["step"], line[name]) for line in curve if line.get(name) is not None]
            panel.plot(*zip(*points, strict=True), marker="o", markersize=3, label=run)
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("updates")
        panel.grid(alpha=0.25)
    if not shared_names:
        panels[0].set_title("no metric that all runs have", fontsize=10)
        return figure.savefig(path)
    panels[0].legend(fontsize=8, frameon=False)
    figure.savefig(path)


def _panels(count: int) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure  # without pyplot, which would keep the figure and need a display

    figure = Figure(figsize=(PANEL_WIDTH * count, HEIGHT), dpi=DPI, layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _plot_curves(panel: Any, sweep: Sweep, colours: Mapping[str, Any]) -> None:
    name = next(iter(sweep.ablation.metrics))
    labelled = set()
    for result in sweep.finished:
        points = [(line["step"], line[name]) for line in result.curve if line.get(name) is not None]
        if points:
            legend_label = None if result.label in labelled else result.label
            panel.plot(
                *zip(*points, strict=True), color=colours[result.label], alpha=0.7, linewidth=1.2, label=legend_label
            )
            labelled.add(result.label)
    panel.set_title(f"{name} during training", fontsize=10)
    panel.set_xlabel("updates")
    panel.grid(alpha=0.25)
    panel.legend(fontsize=7, frameon=False)


def _plot_power_law(panel: Any, sweep: Sweep, law: PowerLaw, colours: Mapping[str, Any]) -> None:
    name = sweep.ablation.power_law
    sizes = sorted({result.parameters for result in sweep.fitted_runs()})
    for result in sweep.fitted_runs():
        panel.plot(result.parameters, result.metrics[name], "o", color=colours[result.label], alpha=0.6)
    panel.plot(sizes, [law.factor * size**law.exponent for size in sizes], "--", color="0.4")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("parameters")
    panel.set_title(f"{name} = {law.factor:.3g} · parameters^{law.exponent:.3f}", fontsize=10)
    panel.grid(alpha=0.25, which="both")
