"""Calibrate from which similarity on `novelty=true` calls a sample a copy (`COPY_SHARE`, `COPY_LEVELS`).

python tools/calibrate_novelty.py checkpoint=drawings data.path=outputs/drawings images=300
python tools/calibrate_novelty.py checkpoint=drawings data=blocks data.train=30000 images=300

Copies are training images after what a model that has memorised them may change: a second pass through the dVAE, a
shift or a scale by a few pixels, JPEG. Others are held-out images beside their nearest training images, as `novelty`
finds them, without those that are in the training set. The first table has quantiles of the share of equal tokens, and
the part at or above each threshold. The second has the part that is near by perceptual hash, by hash and colours (what
`prepare.py find=` reports), by tokens, and by tokens and colours (what `novelty=true` reports). data= and
data.<setting>= replace the data of the checkpoint.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dalle.bundled import checkpoint_folder
from dalle.data import config_from_dict, open_source
from dalle.data.audit.perceptual_hash import colour_distance, hamming_distance, perceptual_hash
from dalle.data.audit.provenance import Provenance
from dalle.data.audit.scan import evenly_spaced
from dalle.data.source import Source
from dalle.data.transforms import inference_crop
from dalle.image_conversion import to_pil_images, to_tensor
from dalle.models.dvae.model import DiscreteVAE
from dalle.sampling.novelty import Neighbour, Novelty, TrainingImages, compare_colours
from dalle.sampling.token_overlap import COPY_LEVELS, COPY_SHARE, compare_tokens

THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True)
class Measured:
    """Similarity of two images."""

    by_hash: Neighbour  # near by perceptual hash?
    by_tokens: Neighbour  # by tokens and colours?

    @property
    def overlap(self) -> float:
        return self.by_tokens.overlap or 0.0


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


def compare(dvae: DiscreteVAE, image: Image.Image, original: Image.Image) -> Measured:
    """Compare two images as `Novelty.nearest` does."""
    one, other = perceptual_hash(image), perceptual_hash(original)
    bits = int(hamming_distance(one["hash"], other["hash"])[0])
    levels = int(colour_distance(one["colours"], other["colours"]))
    pixels = to_tensor([image])
    by_hash = Neighbour(0, "", bits, levels, None, cell_levels=compare_colours(image, original))
    (compared,) = compare_tokens(dvae, pixels[0], dvae.encode(pixels)[0], to_tensor([original]))
    return Measured(by_hash, replace(by_hash, **vars(compared)))


def held_out(novelty: Novelty, source: Source, images: int) -> list[Measured]:
    """Compare held-out images that are not in the training set with their nearest training images."""
    measured = []
    for image in cropped_images(source, images, source.image_size):
        tokens = novelty.dvae.encode(to_tensor([image]))[0]
        by_hash = novelty.training.nearest(image, by_clip=False)[0]
        found = novelty.nearest(image, tokens, by_clip=False)
        if not by_hash.is_same:
            measured.append(Measured(by_hash, found))
    return measured


def cropped_images(source: Source, images: int, size: int) -> Iterator[Image.Image]:
    """Yield `images` evenly spaced ones of a source, cropped as for training."""
    for index in evenly_spaced(len(source), images):
        yield Image.fromarray(inference_crop(source[index].image, size))


def shares(measured: list[Measured]) -> list[str]:
    """Return the cells of a row of the first table: quantiles, and the part at or above each threshold."""
    values = torch.tensor([comparison.overlap for comparison in measured])
    quantiles = [values.quantile(q).item() for q in (0.01, 0.05, 0.5, 0.95, 0.99)]
    above = [(values >= threshold).float().mean().item() for threshold in THRESHOLDS]
    return [f"{value:.2f}" for value in (*quantiles, *above)]


def decisions(measured: list[Measured]) -> list[str]:
    """Return the cells of a row of the second table: the number of images, and the parts called near."""
    near = [
        sum(comparison.by_hash.is_near_by_hash for comparison in measured),
        sum(comparison.by_hash.is_near_duplicate for comparison in measured),
        sum(comparison.overlap >= COPY_SHARE for comparison in measured),
        sum(comparison.by_tokens.is_near_duplicate for comparison in measured),
    ]
    return [f"{len(measured)}", *(f"{count / len(measured):.3f}" for count in near)]


def table(head: Sequence[str], rows: dict[str, list[str]]) -> str:
    lines = [["compared", *head], ["---", *["---:"] * len(head)], *([name, *cells] for name, cells in rows.items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def data_config(folder: Path, given: dict[str, str]) -> Any:
    """Return the data set of a checkpoint, with the settings in `given`: data= and data.<setting>=."""
    if "data" in given:
        written: dict[str, Any] = {"name": given["data"]}
    else:
        written = asdict(Provenance.read(folder / "transformer").data())
    for name, value in given.items():
        if name.startswith("data."):
            written[name.removeprefix("data.")] = json.loads(value) if value.isdecimal() else value
    return config_from_dict(written)


@torch.inference_mode()
def main(overrides: list[str]) -> None:
    given = dict(override.partition("=")[::2] for override in overrides)
    known = {"checkpoint", "images", "data"}
    if unknown := [name for name in given if name not in known and not name.startswith("data.")]:
        sys.exit(f"unknown settings: {', '.join(unknown)}; there are checkpoint=, images=, data= and data.<setting>=")
    folder = checkpoint_folder(given.get("checkpoint", "drawings"))
    images = int(given.get("images", 300))
    dvae = DiscreteVAE.load(folder / "dvae")
    data = data_config(folder, given)
    train = open_source(data, "train")
    originals = list(cropped_images(train, images, train.image_size))
    rows = {name: [compare(dvae, change(image), image) for image in originals] for name, change in copies(dvae).items()}
    novelty = Novelty(TrainingImages.open(data), dvae)
    for split in ("val", "novel"):
        if split == "val" or data.name in ("blocks", "drawings"):
            measured = held_out(novelty, open_source(data, split), images)
            if measured:
                rows[f"held-out images of {split} and the nearest training images"] = measured
    head = ["1%", "5%", "median", "95%", "99%", *(f"≥ {threshold}" for threshold in THRESHOLDS)]
    print(table(head, {name: shares(measured) for name, measured in rows.items()}))
    print()
    head = ["images", "hash", "hash and colours", "tokens", "tokens and colours"]
    print(table(head, {name: decisions(measured) for name, measured in rows.items()}))
    print(f"COPY_SHARE is {COPY_SHARE}, COPY_LEVELS {COPY_LEVELS}")


if __name__ == "__main__":
    main(sys.argv[1:])
