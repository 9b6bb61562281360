"""Plots of sweeps and of run comparisons, with matplotlib, which is an extra: pip install "dalle[eval]"."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dalle.ablations.outcomes import numbers_of
from dalle.ablations.sweep import PowerLaw, Sweep

Curve = Sequence[Mapping[str, float]]
"""Validation lines of one run, each with its step."""

HEIGHT, PANEL, DOTS = 3.4, 4.2, 80  # inches, inches, dots per inch: small files


def sweep_figure(sweep: Sweep, path: Path) -> None:
    """Plot the first measure against steps, with a colour per value, then each final measure, one dot per run."""
    from matplotlib import colormaps

    law = sweep.power_law()
    way = any(len(each.curve) > 1 for each in sweep.finished)
    figure, panels = _panels(way + (law is not None) + len(sweep.measures))
    palette = colormaps["tab10"]
    colours = {value: palette(number % 10) for number, value in enumerate(sweep.values)}
    rest = list(panels)
    if way:
        _on_the_way(rest.pop(0), sweep, colours)
    if law is not None:
        _power_law(rest.pop(0), sweep, law, colours)
    for panel, measure in zip(rest, sweep.measures, strict=True):
        for place, value in enumerate(sweep.values):
            runs = measure.runs.get(value, ())
            panel.plot([place] * len(runs), runs, "o", color=colours[value], alpha=0.6)
            if runs:
                panel.plot([place - 0.25, place + 0.25], [measure.mean(value)] * 2, color=colours[value], linewidth=2)
        marked = [f"{value} ◂" if value == sweep.ablation.paper else value for value in sweep.values]
        panel.set_xticks(range(len(marked)), marked, rotation=25, ha="right", fontsize=8)
        panel.set_title(f"{measure.title} ({measure.better} is better)", fontsize=10)
        panel.grid(axis="y", alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def runs_figure(curves: Mapping[str, Curve], path: Path) -> None:
    """Plot a panel for each measure that all runs have, with a line for each run."""
    first, *others = [numbers_of(curve[-1]) for curve in curves.values()]
    shared = [name for name in first if all(name in each for each in others)]
    figure, panels = _panels(max(1, len(shared)))
    path.parent.mkdir(parents=True, exist_ok=True)
    for panel, name in zip(panels, shared, strict=False):
        for run, curve in curves.items():
            points = [(line["step"], line[name]) for line in curve if line.get(name) is not None]
            panel.plot(*zip(*points, strict=True), marker="o", markersize=3, label=run)
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("updates")
        panel.grid(alpha=0.25)
    if not shared:
        panels[0].set_title("no measure that all of them have", fontsize=10)
        return figure.savefig(path)
    panels[0].legend(fontsize=8, frameon=False)
    figure.savefig(path)


def _panels(count: int) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure  # without pyplot, which would keep the figure and need a display

    figure = Figure(figsize=(PANEL * count, HEIGHT), dpi=DOTS, layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _on_the_way(panel: Any, sweep: Sweep, colours: Mapping[str, Any]) -> None:
    name = next(iter(sweep.ablation.measures))
    told = set()
    for each in sweep.finished:
        points = [(line["step"], line[name]) for line in each.curve if line.get(name) is not None]
        if points:
            text = None if each.label in told else each.label
            panel.plot(*zip(*points, strict=True), color=colours[each.label], alpha=0.7, linewidth=1.2, label=text)
            told.add(each.label)
    panel.set_title(f"{name} on the way", fontsize=10)
    panel.set_xlabel("updates")
    panel.grid(alpha=0.25)
    panel.legend(fontsize=7, frameon=False)


def _power_law(panel: Any, sweep: Sweep, law: PowerLaw, colours: Mapping[str, Any]) -> None:
    name = sweep.ablation.power_law
    sizes = sorted({each.parameters for each in sweep.fitted()})
    for each in sweep.fitted():
        panel.plot(each.parameters, each.measures[name], "o", color=colours[each.label], alpha=0.6)
    panel.plot(sizes, [law.factor * size**law.exponent for size in sizes], "--", color="0.4")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("parameters")
    panel.set_title(f"{name} = {law.factor:.3g} · parameters^{law.exponent:.3f}", fontsize=10)
    panel.grid(alpha=0.25, which="both")
