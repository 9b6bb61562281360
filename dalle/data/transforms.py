"""How a picture becomes the square of pixels that a model trains on: the paper's augmentations, and none.

Every transform has the same face, `(image, size, generator) -> (size, size, 3) uint8`. The paper's numbers
are given for 256 pixels and are scaled to `size` here. The paper assumes pictures whose shorter side has at
least 256 pixels; here a square cut from a smaller picture is enlarged to `size` (a departure).
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

Transform = Callable[[Image.Image, int, np.random.Generator], np.ndarray]

SHUFFLED = 0.25  # share of pictures whose channels `channel_shuffle` permutes


def dvae_augmentation(image: Image.Image, size: int, generator: np.random.Generator) -> np.ndarray:
    """The dVAE's augmentation (paper, appendix A.2, Listing 1): random crop, random scale, random flip.

    `image` has any size and mode (alpha is laid on white); the result is (size, size, 3) uint8. The largest
    square that fits is cut at random, shrunk to a side drawn from 9/8 to 12/8 of `size` (no longer than the
    square itself), cut to `size` at random, and mirrored in half of the draws.
    """
    image = on_white(image)
    side = min(image.size)
    left, top = random_offset(image.width - side, generator), random_offset(image.height - side, generator)
    shortest, longest = min(side, round(size * 9 / 8)), min(side, round(size * 12 / 8))
    target = int(generator.integers(shortest, longest, endpoint=True))
    pixels = random_crop(resized_square(image, left, top, side, max(target, size)), size, generator)
    return pixels[:, ::-1] if generator.random() < 0.5 else pixels


def transformer_augmentation(image: Image.Image, size: int, generator: np.random.Generator) -> np.ndarray:
    """The transformer's gentler augmentation (paper, appendix B.2, Listing 2): near the centre, unflipped.

    `image` has any size and mode (alpha is laid on white); the result is (size, size, 3) uint8. The largest
    square comes from the middle of the longer side and is shrunk to a side drawn from 1 to 9/8 of `size`.
    No flip: a picture may hold text, and its caption may say left and right.
    """
    image = on_white(image)
    side = min(image.size)
    left, top = central_offset(image.width - side, generator), central_offset(image.height - side, generator)
    target = int(generator.integers(size, max(size, min(side, round(size * 9 / 8))), endpoint=True))
    return random_crop(resized_square(image, left, top, side, target), size, generator)


def inference_crop(image: Image.Image, size: int, generator: np.random.Generator | None = None) -> np.ndarray:
    """No augmentation: the shorter side scaled to `size` with Lanczos, the centre kept (dVAE's usage.ipynb).

    `image` has any size and mode (alpha is laid on white); the result is (size, size, 3) uint8. Nothing is
    drawn from the generator. The official code refuses pictures smaller than `size`; they are enlarged here.
    """
    # resampling only the part that is kept equals scaling and then cropping, whatever the proportions
    kept = on_white(image).resize((size, size), Image.Resampling.LANCZOS, box=central_box(image.size, size))
    return np.asarray(kept)


def central_box(image_size: tuple[int, int], size: int) -> tuple[float, float, float, float]:
    """Left, top, right, bottom, in a picture's own pixels, of what `inference_crop` keeps of it."""
    side = min(image_size)
    start, stop = [], []
    for original in image_size:
        scaled = max(size, round(original * size / side))
        offset = round((scaled - size) / 2)
        start.append(offset * original / scaled)
        stop.append((offset + size) * original / scaled)
    return start[0], start[1], stop[0], stop[1]


def channel_shuffle(image: Image.Image, size: int, generator: np.random.Generator) -> np.ndarray:
    """`inference_crop`, in a quarter of the draws with red, green and blue in another order; not the paper's.

    For a dVAE of few pictures in few colours: shapes in colours that no picture has keep it from learning each
    coloured shape by heart. Not for stages that read captions, which say "red".
    """
    pixels = inference_crop(image, size)
    return pixels[..., generator.permutation(3)] if generator.random() < SHUFFLED else pixels


TRANSFORMS: dict[str, Transform] = {
    "dvae": dvae_augmentation,
    "transformer": transformer_augmentation,
    "none": inference_crop,
    "channel_shuffle": channel_shuffle,
}


def transform_named(name: str) -> Transform:
    """The transform that `TRANSFORMS` has under this name; ValueError for any other."""
    if name not in TRANSFORMS:
        raise ValueError(f"there is no transform {name!r}; choose one of {', '.join(TRANSFORMS)}")
    return TRANSFORMS[name]


def on_white(image: Image.Image) -> Image.Image:
    """The picture as 8-bit RGB: what is transparent becomes white, 16-bit greys are scaled to 8 bits."""
    if image.mode.startswith("I"):  # Pillow's own conversion clips at 255 instead of scaling
        greys = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.rint(greys.clip(0, 65535) / 257).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image if image.mode == "RGB" else image.convert("RGB")


def random_offset(freedom: int, generator: np.random.Generator) -> int:
    """Where a crop starts on an axis along which it can move by `freedom` pixels: anywhere."""
    return int(generator.integers(freedom, endpoint=True))


def central_offset(freedom: int, generator: np.random.Generator) -> int:
    """Where a crop starts on an axis along which it can move by `freedom` pixels: from 3/8 to 5/8 of them."""
    first = 3 * freedom // 8
    return int(generator.integers(first, max(first + 1, 5 * freedom // 8)))


def random_crop(pixels: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """(h, w, 3) -> (size, size, 3), every position equally likely."""
    top = random_offset(pixels.shape[0] - size, generator)
    left = random_offset(pixels.shape[1] - size, generator)
    return pixels[top : top + size, left : left + size]


def resized_square(image: Image.Image, left: int, top: int, side: int, target: int) -> np.ndarray:
    """(target, target, 3) uint8: the square of `side` pixels at this corner, shrunk by area or enlarged."""
    cut = image.crop((left, top, left + side, top + side))
    if target > side:
        return np.asarray(cut.resize((target, target), Image.Resampling.LANCZOS))
    return area_resize(np.asarray(cut), target)


def area_resize(pixels: np.ndarray, target: int) -> np.ndarray:
    """Shrink (side, side, 3) uint8 to (target, target, 3) uint8 by averaging areas, 1 <= target <= side.

    TensorFlow's AREA method with align_corners, as in the listings. Pillow's nearest kin, BOX, counts a
    pixel wholly or not at all; at the scales of 1 to 3/2 that small pictures meet, its edges come out ragged.
    """
    if target == pixels.shape[0]:
        return pixels
    rows = area_means(pixels, target)  # (target, side, 3)
    means = area_means(rows.swapaxes(0, 1), target).swapaxes(0, 1)  # (target, target, 3)
    return np.rint(means.clip(0, 255)).astype(np.uint8)


def area_means(values: np.ndarray, target: int) -> np.ndarray:
    """The first axis cut into `target` equal stretches, each replaced by its mean: (n, ...) -> (target, ...).

    The stretches are (n-1)/(target-1) long and start at 0, so the last one reaches past the end, where the
    last value is repeated. Elements that straddle a border count in part. Returns float32.
    """
    n = values.shape[0]
    length = (n - 1) / (target - 1) if target > 1 else float(n)
    edges = np.arange(target + 1) * length
    first = np.floor(edges[:-1]).astype(np.int64)
    means = np.zeros((target, *values.shape[1:]), dtype=np.float32)
    for step in range(int((np.ceil(edges[1:]) - first).max())):
        element = first + step
        share = np.minimum(edges[1:], element + 1) - np.maximum(edges[:-1], element)
        weight = (share.clip(0) / length).astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
        means += weight * values[np.minimum(element, n - 1)]
    return means
