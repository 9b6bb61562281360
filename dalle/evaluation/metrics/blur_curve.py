"""Sample quality against blur: share of the distance that is in fine detail, which the dVAE cannot decode (Figure 9).

Real and sampled images are blurred by the same Gaussian. The paper's radii are 0, 1, 2, 4 and 8 pixels, for images of
256 pixels. The paper does not define radius; it is taken as the standard deviation, as in Pillow.
"""

from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageFilter
from torch import Tensor

from dalle.evaluation.features import features_named
from dalle.evaluation.held_out import HeldOut
from dalle.evaluation.measured import Measured
from dalle.evaluation.metrics.distances import about
from dalle.evaluation.metrics.quality import compare, draw_samples, drawing_settings
from dalle.evaluation.plots import check_matplotlib, plot_blur_curve
from dalle.evaluation.settings import EvaluateConfig
from dalle.evaluation.subject import Subject

RADII = (0, 1, 2, 4, 8)
FILTER = "Pillow's GaussianBlur, radius = standard deviation in pixels, on 8-bit pictures before they are resized"
ABOUT = " At each radius both sets are blurred alike, in pixels of pictures {size} wide; the paper's are 256 wide."


def measure(subject: Subject, config: EvaluateConfig) -> Measured:
    """Compute the metrics of `quality` at each radius, for the same images."""
    check_matplotlib()
    features = features_named(config.features, config.weights, next(subject.dvae.parameters()).device)
    pairs = HeldOut(subject.sources["val"], config.samples)
    samples = draw_samples(subject, config, pairs)
    rows: dict[int, dict[str, float]] = {}
    settings: dict[str, Any] = {"blur": FILTER, "radii": list(RADII), **drawing_settings(subject, config)}
    notes: list[str] = []
    for radius in RADII:
        distances = compare(
            features,
            (blurred(batch.images, radius) for batch in pairs),
            (blurred(images, radius) for images in samples.batches(pairs.seen)),
            config.seed,
        )
        rows[radius], notes = distances.compute()
        settings |= {**pairs.described(), **distances.described()}
    names = [name for name in (features.frechet, features.kid, features.inception_score) if name in rows[0]]
    curves = {name: [row[name] for row in rows.values()] for name in names}
    return Measured(
        about(features) + ABOUT.format(size=subject.data.image_size),
        {f"{name}_blur_{radius}": value for radius, row in rows.items() for name, value in row.items()},
        settings,
        {"blur_curve": plot_blur_curve(RADII, curves, pairs.seen)},
        table(curves),
        notes,
    )


def blurred(images: Tensor, radius: float) -> Tensor:
    """Blur each image by a Gaussian: (b, 3, h, w) uint8 -> the same; radius 0 returns the input."""
    if radius == 0:
        return images
    pictures = rearrange(images, "b c h w -> b h w c").cpu().numpy()
    soft = [np.asarray(Image.fromarray(each).filter(ImageFilter.GaussianBlur(radius))) for each in pictures]
    return rearrange(torch.from_numpy(np.stack(soft)), "b h w c -> b c h w")


def table(curves: dict[str, list[float]]) -> str:
    """Markdown table with a row for each radius."""
    head = f"| blur radius | {' | '.join(curves)} |\n|---|{'---|' * len(curves)}\n"
    rows = zip(RADII, *curves.values(), strict=True)
    cells = ([str(radius), *(f"{value:.4g}" for value in values)] for radius, *values in rows)
    return head + "".join(f"| {' | '.join(row)} |\n" for row in cells)
