"""Plots of evaluation results, with matplotlib, which is an extra: pip install "dalle[eval]"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image

from dalle.evaluation.metrics.best_of_n import PERFECT, BestOfNCurves
from dalle.optional_dependencies import check_installed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_matplotlib() -> None:
    """Raise `ValueError` if matplotlib is missing. Called before hours of sampling."""
    check_installed("eval", "the plot", "matplotlib")


def plot_best_of_n(curves: BestOfNCurves) -> Image.Image:
    """Plot each quality against the number of candidates: a panel per quality, a line with error band per ranking."""
    from matplotlib.figure import Figure  # without pyplot, which would keep the figure and need a display

    qualities = list(dict.fromkeys(curve.quality for curve in curves.curves))
    figure = Figure(figsize=(1 + 4.6 * len(qualities), 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(qualities), squeeze=False)[0]
    for panel, quality in zip(panels, qualities, strict=True):
        for curve in (curve for curve in curves.curves if curve.quality == quality):
            style = (
                {"color": "0.55", "linestyle": "--"} if curve.ranking == PERFECT else {"marker": "o", "markersize": 4}
            )
            (line,) = panel.plot(curves.sizes, curve.means, label=curve.ranking, **style)
            low = [mean - error for mean, error in zip(curve.means, curve.errors, strict=True)]
            high = [mean + error for mean, error in zip(curve.means, curve.errors, strict=True)]
            panel.fill_between(curves.sizes, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        panel.set_xscale("log", base=2)
        panel.set_xticks(curves.sizes, [str(size) for size in curves.sizes])
        panel.set_xlabel(f"candidates per caption, {curves.captions} captions")
        panel.set_ylabel(f"{quality} of the best: mean and standard error")
        panel.grid(alpha=0.25)
        panel.legend(title="ranked by", frameon=False)
    return _to_image(figure)


def plot_blur_curve(radii: Sequence[int], curves: Mapping[str, Sequence[float]], images: int) -> Image.Image:
    """Plot each metric against the blur radius, one panel per metric."""
    return _panels(radii, curves, f"blur radius in pixels, {images} images")


def plot_best_of_n_sets(sizes: Sequence[int], curves: Mapping[str, Sequence[float]], captions: int) -> Image.Image:
    """Plot metrics of the set of best candidates against the number of candidates, a panel for each (Figure 9c)."""
    return _panels(sizes, curves, f"candidates per caption, {captions} captions", logarithmic=True)


def _panels(
    x: Sequence[int], curves: Mapping[str, Sequence[float]], label: str, logarithmic: bool = False
) -> Image.Image:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 3.6 * len(curves), 3.8), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (name, values) in zip(panels, curves.items(), strict=True):
        panel.plot(x, values, marker="o", markersize=4)
        if logarithmic:
            panel.set_xscale("log", base=2)
        else:
            panel.axhline(0, color="0.55", linewidth=0.8)
        panel.set_xticks(x, [str(value) for value in x])
        panel.set_xlabel(label)
        panel.set_ylabel(name)
        panel.grid(alpha=0.25)
    return _to_image(figure)


def _to_image(figure: Figure) -> Image.Image:
    buffer = BytesIO()
    figure.savefig(buffer)
    return Image.open(buffer).convert("RGB")
