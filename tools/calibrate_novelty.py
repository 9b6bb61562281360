"""Calibrate the share of equal tokens from which `novelty=true` calls a sample a copy (`token_overlap.COPY_SHARE`).

python tools/calibrate_novelty.py checkpoint=drawings data.path=outputs/drawings images=300

Copies are training images after what a model that has memorised them may change: a second pass through the dVAE, a
shift or a scale by a few pixels, JPEG. Others are held-out images beside their nearest training images, as `novelty`
finds them. Prints the quantiles of both, and the share at or above each threshold.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor

from dalle.bundled import checkpoint_folder
from dalle.data import open_source
from dalle.data.audit.provenance import Provenance
from dalle.data.audit.scan import evenly_spaced
from dalle.data.source import Source
from dalle.data.transforms import inference_crop
from dalle.image_conversion import to_pil_images, to_tensor
from dalle.models.dvae.model import DiscreteVAE
from dalle.sampling.novelty import Novelty, TrainingImages
from dalle.sampling.token_overlap import COPY_SHARE, MAX_SHIFT, align, token_overlap

THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def shift(image: Image.Image, pixels: int) -> Image.Image:
    """Move an image right and down, with white at the borders."""
    moved = Image.new("RGB", image.size, "white")
    moved.paste(image, (pixels, pixels))
    return moved


def rescale(image: Image.Image, factor: float) -> Image.Image:
    """Shrink an image about its centre, with white around it."""
    size = round(image.width * factor)
    smaller = Image.new("RGB", image.size, "white")
    border = (image.width - size) // 2
    smaller.paste(image.resize((size, size), Image.Resampling.BICUBIC), (border, border))
    return smaller


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def copies(dvae: DiscreteVAE) -> dict[str, Callable[[Image.Image], Image.Image]]:
    """Return the changes of copies by name."""

    def through_dvae(image: Image.Image) -> Image.Image:
        return to_pil_images(dvae.decode(dvae.encode(to_tensor([image]))))[0]

    return {
        "through the dVAE once more": through_dvae,
        "through the dVAE twice more": lambda image: through_dvae(through_dvae(image)),
        "JPEG, quality 60": lambda image: jpeg(image, 60),
        "moved by 1 pixel": lambda image: shift(image, 1),
        "moved by 2 pixels": lambda image: shift(image, 2),
        "moved by 8 pixels": lambda image: shift(image, 8),
        "scaled to 95%": lambda image: rescale(image, 0.95),
    }


def overlap(dvae: DiscreteVAE, image: Image.Image, original: Image.Image) -> float:
    """Return the share of equal tokens of two images, as `Novelty.nearest` computes it."""
    target, other = to_tensor([image]), to_tensor([original])
    tokens, *others = dvae.encode(torch.cat([target, other, align(other, target[0], MAX_SHIFT * dvae.downsample)]))
    return max(token_overlap(tokens, each) for each in others)


def cropped_images(source: Source, images: int, size: int) -> Iterator[Image.Image]:
    """Yield `images` evenly spaced ones of a source, cropped as for training."""
    for index in evenly_spaced(len(source), images):
        yield Image.fromarray(inference_crop(source[index].image, size))


def row(name: str, shares: list[float]) -> str:
    """Return a table row of quantiles and the share at or above each threshold."""
    values = torch.tensor(shares)
    quantiles = [values.quantile(q).item() for q in (0.01, 0.05, 0.5, 0.95, 0.99)]
    above = [(values >= threshold).float().mean().item() for threshold in THRESHOLDS]
    return f"| {name} | " + " | ".join(f"{each:.2f}" for each in (*quantiles, *above)) + " |"


@torch.inference_mode()
def main(overrides: list[str]) -> None:
    given = dict(each.partition("=")[::2] for each in overrides)
    if unknown := given.keys() - {"checkpoint", "images", "data.path"}:
        sys.exit(f"unknown settings: {', '.join(sorted(unknown))}; there are checkpoint=, images= and data.path=")
    folder = checkpoint_folder(given.get("checkpoint", "drawings"))
    images = int(given.get("images", 300))
    dvae = DiscreteVAE.load(folder / "dvae")
    data = Provenance.read(folder / "transformer").data()
    if "data.path" in given:
        data = replace(data, path=given["data.path"])
    train, val = open_source(data, "train"), open_source(data, "val")
    size = train.image_size

    def encode(image: Image.Image) -> Tensor:
        return dvae.encode(to_tensor([image]))[0]

    print(
        "| compared | " + " | ".join(["1%", "5%", "median", "95%", "99%"] + [f"≥ {each}" for each in THRESHOLDS]) + " |"
    )
    print("|---|" + "---:|" * (5 + len(THRESHOLDS)))
    originals = list(cropped_images(train, images, size))
    for name, change in copies(dvae).items():
        print(row(name, [overlap(dvae, change(image), image) for image in originals]), flush=True)
    novelty = Novelty(TrainingImages.open(data), dvae)
    found = [novelty.nearest(image, encode(image), by_clip=False) for image in cropped_images(val, images, size)]
    print(
        row(
            "held-out images and the nearest training images",
            [each.overlap or 0.0 for each in found if not each.is_same],
        )
    )
    print(f"COPY_SHARE is {COPY_SHARE}")


if __name__ == "__main__":
    main(sys.argv[1:])
