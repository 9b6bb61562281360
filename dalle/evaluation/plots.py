"""Plots of evaluation results, with matplotlib, which is an extra: pip install "dalle[eval]"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image

from dalle.evaluation.metrics.best_of import PERFECT, RerankCurve
from dalle.optional_dependencies import check_installed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_matplotlib() -> None:
    """Raise `ValueError` if matplotlib is missing. Called before hours of sampling."""
    check_installed("eval", "the plot", "matplotlib")


def plot_rerank_curve(curve: RerankCurve) -> Image.Image:
    """Plot each quality against the number of candidates: a panel per quality, a line with error band per ranking."""
    from matplotlib.figure import Figure  # without pyplot, which would keep the figure and need a display

    qualities = list(dict.fromkeys(each.quality for each in curve.curves))
    figure = Figure(figsize=(1 + 4.6 * len(qualities), 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(qualities), squeeze=False)[0]
    for panel, quality in zip(panels, qualities, strict=True):
        for each in (each for each in curve.curves if each.quality == quality):
            style = (
                {"color": "0.55", "linestyle": "--"} if each.ranking == PERFECT else {"marker": "o", "markersize": 4}
            )
            (line,) = panel.plot(curve.sizes, each.means, label=each.ranking, **style)
            low = [mean - error for mean, error in zip(each.means, each.errors, strict=True)]
            high = [mean + error for mean, error in zip(each.means, each.errors, strict=True)]
            panel.fill_between(curve.sizes, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        panel.set_xscale("log", base=2)
        panel.set_xticks(curve.sizes, [str(size) for size in curve.sizes])
        panel.set_xlabel(f"candidates for each of {curve.captions} captions")
        panel.set_ylabel(f"{quality}: mean of the chosen, and its standard error")
        panel.grid(alpha=0.25)
        panel.legend(title="chosen by", frameon=False)
    return _picture(figure)


def plot_blur_curve(radii: Sequence[int], curves: Mapping[str, Sequence[float]], pictures: int) -> Image.Image:
    """Plot each metric against the blur radius, one panel per metric."""
    return _panels(radii, curves, f"blur radius in pixels, {pictures} pictures")


def plot_set_curve(sizes: Sequence[int], curves: Mapping[str, Sequence[float]], captions: int) -> Image.Image:
    """Plot metrics of the set of best candidates against the number of candidates, a panel for each (Figure 9c)."""
    return _panels(sizes, curves, f"candidates for each of {captions} captions", logarithmic=True)


def _panels(
    at: Sequence[int], curves: Mapping[str, Sequence[float]], label: str, logarithmic: bool = False
) -> Image.Image:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 3.6 * len(curves), 3.8), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (name, values) in zip(panels, curves.items(), strict=True):
        panel.plot(at, values, marker="o", markersize=4)
        if logarithmic:
            panel.set_xscale("log", base=2)
        else:
            panel.axhline(0, color="0.55", linewidth=0.8)
        panel.set_xticks(at, [str(each) for each in at])
        panel.set_xlabel(label)
        panel.set_ylabel(name)
        panel.grid(alpha=0.25)
    return _picture(figure)


def _picture(figure: Figure) -> Image.Image:
    buffer = BytesIO()
    figure.savefig(buffer)
    return Image.open(buffer).convert("RGB")
