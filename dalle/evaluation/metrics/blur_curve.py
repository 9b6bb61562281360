"""Metric `blur_curve`: sample quality against blur, as the dVAE loses fine detail (Figure 9).

Real and sampled images are blurred by the same Gaussian. The paper's radii are 0, 1, 2, 4 and 8 pixels, for images of
256 pixels. The paper does not define radius; it is taken as the standard deviation, as in Pillow.
"""

from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageFilter
from torch import Tensor

from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.evaluation.features import load_feature_network
from dalle.evaluation.held_out import HeldOut
from dalle.evaluation.metric_result import MetricResult
from dalle.evaluation.metrics.fid_kid_is import describe
from dalle.evaluation.metrics.sample_quality import cached_samples, compare_sets
from dalle.evaluation.plots import check_matplotlib, plot_blur_curve

RADII = (0, 1, 2, 4, 8)
FILTER = "Pillow's GaussianBlur, radius = standard deviation in pixels, on 8-bit images before they are resized"
DESCRIPTION = (
    " Real and sampled images are blurred alike. The radius is in pixels of images of {size} pixels a side; the "
    "paper's have 256."
)


def measure(context: EvaluationContext, config: EvaluateConfig) -> MetricResult:
    """Compute the metrics of `sample_quality` at each radius, for the same images."""
    check_matplotlib()
    features = load_feature_network(config.features, config.weights, context.device)
    pairs = HeldOut(context.sources["val"], config.samples)
    cache, cache_settings = cached_samples(context, config, pairs)
    rows: dict[int, dict[str, float]] = {}
    settings: dict[str, Any] = {"blur": FILTER, "radii": list(RADII), **cache_settings}
    notes: list[str] = []
    for radius in RADII:
        metrics = compare_sets(
            features,
            (blur(batch.images, radius) for batch in pairs),
            (blur(images, radius) for images in cache.batches(pairs.num_pairs)),
            config.seed,
        )
        rows[radius], notes = metrics.compute()
        settings |= {**pairs.settings(), **metrics.settings()}
    names = [name for name in (features.frechet, features.kid, features.inception_score) if name in rows[0]]
    curves = {name: [row[name] for row in rows.values()] for name in names}
    return MetricResult(
        describe(features) + DESCRIPTION.format(size=context.data.image_size),
        {f"{name}_blur_{radius}": value for radius, row in rows.items() for name, value in row.items()},
        settings,
        {"blur_curve": plot_blur_curve(RADII, curves, pairs.num_pairs)},
        table(curves),
        notes,
    )


def blur(images: Tensor, radius: float) -> Tensor:
    """Blur each image by a Gaussian: (b, 3, h, w) uint8 -> the same shape; radius 0 returns the input."""
    if radius == 0:
        return images
    pixels = rearrange(images, "b c h w -> b h w c").cpu().numpy()
    blurred_images = [np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))) for image in pixels]
    return rearrange(torch.from_numpy(np.stack(blurred_images)), "b h w c -> b c h w")


def table(curves: dict[str, list[float]]) -> str:
    """Return a Markdown table with a row for each radius and a column for each metric."""
    head = f"| blur radius | {' | '.join(curves)} |\n|---|{'---|' * len(curves)}\n"
    rows = zip(RADII, *curves.values(), strict=True)
    cells = ([str(radius), *(f"{value:.4g}" for value in values)] for radius, *values in rows)
    return head + "".join(f"| {' | '.join(row)} |\n" for row in cells)
