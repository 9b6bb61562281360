"""Image transforms: the paper's augmentations for the dVAE and the transformer, and a crop without augmentation.

All transforms have the signature `(image, size, generator) -> (size, size, 3) uint8`. The paper gives its numbers for
256 pixels; they are scaled to `size` here. The paper assumes images with a shorter side of at least 256 pixels. Here a
square cut from a smaller image is enlarged to `size` (a deviation from the paper).
"""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
from PIL import Image, ImageFilter

Transform = Callable[[Image.Image, int, np.random.Generator], np.ndarray]

SHUFFLE_PROBABILITY = 0.25  # probability that `channel_shuffle` permutes the channels
MAX_TURN, MAX_SHIFT = 10.0, 0.1  # of `affine_augmentation`: degrees, and shares of the side
PLACEMENT_PROBABILITY, MIN_SCALE = 0.5, 0.85  # that `random_placement` changes the image, and its smallest scale
TILE = 1024  # pixels per side of the parts of a large image that are converted to RGB one after the other


def dvae_augmentation(image: Image.Image, size: int, generator: np.random.Generator) -> np.ndarray:
    """Apply the dVAE's augmentation (paper, appendix A.2, Listing 1): random crop, random scale, random flip.

    `image` has any size and mode (alpha is composited on white); the result is (size, size, 3) uint8. The largest
    square that fits is cropped at a random position and shrunk to a side drawn from 9/8 to 12/8 of `size` (at most
    the side of the square). A random crop of `size` follows, flipped horizontally with probability 1/2.
    """
    image = on_white(image)
    side = min(image.size)
    left, top = random_offset(image.width - side, generator), random_offset(image.height - side, generator)
    shortest, longest = min(side, round(size * 9 / 8)), min(side, round(size * 12 / 8))
    target = int(generator.integers(shortest, longest, endpoint=True))
    pixels = random_crop(resized_square(image, left, top, side, max(target, size)), size, generator)
    return pixels[:, ::-1] if generator.random() < 0.5 else pixels


def transformer_augmentation(image: Image.Image, size: int, generator: np.random.Generator) -> np.ndarray:
    """Apply the transformer's weaker augmentation (paper, appendix B.2, Listing 2): crop near the centre, no flip.

    `image` has any size and mode (alpha is composited on white); the result is (size, size, 3) uint8. The largest
    square is cropped near the middle of the longer side and shrunk to a side drawn from 1 to 9/8 of `size`.
    There is no flip because images may show text and captions may say left and right.
    """
    image = on_white(image)
    side = min(image.size)
    left, top = central_offset(image.width - side, generator), central_offset(image.height - side, generator)
    target = int(generator.integers(size, max(size, min(side, round(size * 9 / 8))), endpoint=True))
    return random_crop(resized_square(image, left, top, side, target), size, generator)


def inference_crop(image: Image.Image, size: int, generator: np.random.Generator | None = None) -> np.ndarray:
    """Scale the shorter side to `size` with Lanczos and crop the centre, without augmentation (dVAE's usage.ipynb).

    `image` has any size and mode (alpha is composited on white); the result is (size, size, 3) uint8. The generator
    is not used. The official code rejects images smaller than `size`; they are enlarged here.
    """
    # resampling only the cropped part equals scaling and then cropping, for any aspect ratio
    cropped = on_white(image).resize((size, size), Image.Resampling.LANCZOS, box=central_box(image.size, size))
    return np.asarray(cropped)


def central_box(image_size: tuple[int, int], size: int) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) of the crop of `inference_crop`, in pixels of the original image."""
    side = min(image_size)
    start, stop = [], []
    for original in image_size:
        scaled = max(size, round(original * size / side))
        offset = round((scaled - size) / 2)
        start.append(offset * original / scaled)
        stop.append((offset + size) * original / scaled)
    return start[0], start[1], stop[0], stop[1]


def channel_shuffle(image: Image.Image, size: int, generator: np.random.Generator) -> np.ndarray:
    """Apply `inference_crop`, then permute the RGB channels with probability `SHUFFLE_PROBABILITY`. Not in the paper.

    Intended for a dVAE trained on few images with few colours: colours that no image has keep it from memorizing each
    coloured shape. Not for stages that read captions, because captions name colours.
    """
    pixels = inference_crop(image, size)
    return pixels[..., generator.permutation(3)] if generator.random() < SHUFFLE_PROBABILITY else pixels


def affine_augmentation(image: Image.Image, size: int, generator: np.random.Generator) -> np.ndarray:
    """Shift, scale and turn the image a little on a white background. Not in the paper.

    `image` has any size and mode (alpha is composited on white); the result is (size, size, 3) uint8. The largest
    central square is scaled by 0.8 to 1.2, turned by up to 10 degrees and shifted by up to 10% of its side. Intended
    for a CLIP trained on few images, which are drawings on white. There is no flip, as in `transformer_augmentation`.
    """
    image = on_white(image)
    zoom, turn, *shift = generator.uniform((0.8, -1.0, -1.0, -1.0), (1.2, 1.0, 1.0, 1.0)).tolist()
    angle = math.radians(MAX_TURN * turn)
    pixels = min(image.size) / (zoom * size)  # of the image, for each pixel of the result
    cosine, sine = pixels * math.cos(angle), pixels * math.sin(angle)
    x, y = (size / 2 * (1 + 2 * MAX_SHIFT * offset) for offset in shift)  # where the image's centre goes
    across = (cosine, sine, image.width / 2 - cosine * x - sine * y)
    down = (-sine, cosine, image.height / 2 + sine * x - cosine * y)
    if pixels > 1:  # average, since an affine transform reads single pixels
        image = image.filter(ImageFilter.BoxBlur((pixels - 1) / 2))
    moved = image.transform(
        (size, size), Image.Transform.AFFINE, (*across, *down), Image.Resampling.BILINEAR, fillcolor="white"
    )
    return np.asarray(moved)


def random_placement(image: Image.Image, size: int, generator: np.random.Generator) -> np.ndarray:
    """Apply `inference_crop`, and half of the time shrink the image and place it at random on white. Not in the paper.

    The probability is `PLACEMENT_PROBABILITY`. `image` has any size and mode (alpha is composited on white); the result
    is (size, size, 3) uint8. Intended for a transformer trained for many epochs on drawings: it learns a fixed crop by
    its tokens, which change with every shift, instead of by what it shows. The image is scaled by 0.85 to 1 and stays
    whole. There is no flip, as in `transformer_augmentation`.
    """
    if generator.random() >= PLACEMENT_PROBABILITY:
        return inference_crop(image, size)
    side = int(generator.integers(math.ceil(MIN_SCALE * size), size, endpoint=True))
    left, top = (int(offset) for offset in generator.integers(0, size - side, 2, endpoint=True))
    placed = np.full((size, size, 3), 255, np.uint8)
    placed[top : top + side, left : left + side] = inference_crop(image, side)
    return placed


TRANSFORMS: dict[str, Transform] = {
    "dvae": dvae_augmentation,
    "transformer": transformer_augmentation,
    "none": inference_crop,
    "channel_shuffle": channel_shuffle,
    "affine": affine_augmentation,
    "placement": random_placement,
}


def get_transform(name: str) -> Transform:
    """Return the transform `name` of `TRANSFORMS`. Raises ValueError for an unknown name."""
    if name not in TRANSFORMS:
        raise ValueError(f"there is no transform {name!r}; choose one of {', '.join(TRANSFORMS)}")
    return TRANSFORMS[name]


def on_white(image: Image.Image) -> Image.Image:
    """Convert an image to 8-bit RGB. Transparency is composited on white; 16-bit greys are scaled to 8 bits."""
    return on_background(image, "white")


def on_background(image: Image.Image, colour: str) -> Image.Image:
    """Convert an image to 8-bit RGB, as `on_white`, with transparency composited on another colour.

    Large images are converted in tiles, so that only the result takes memory, not the steps to it.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if max(image.size) <= TILE:
        return _tile_on_background(image, colour)
    converted = Image.new("RGB", image.size)
    for left, top in product(range(0, image.width, TILE), range(0, image.height, TILE)):
        box = (left, top, min(left + TILE, image.width), min(top + TILE, image.height))
        converted.paste(_tile_on_background(image.crop(box), colour), box)
    return converted


def _tile_on_background(image: Image.Image, colour: str) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow's own conversion clips at 255 instead of scaling
        greys = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.rint(greys.clip(0, 65535) / 257).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, colour), layer)
    return image if image.mode == "RGB" else image.convert("RGB")


def random_offset(freedom: int, generator: np.random.Generator) -> int:
    """Draw the start of a crop along an axis uniformly from [0, freedom], in pixels."""
    return int(generator.integers(freedom, endpoint=True))


def central_offset(freedom: int, generator: np.random.Generator) -> int:
    """Draw the start of a crop along an axis from 3/8 to 5/8 of `freedom`, in pixels."""
    first = 3 * freedom // 8
    return int(generator.integers(first, max(first + 1, 5 * freedom // 8)))


def random_crop(pixels: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """Crop (h, w, 3) to (size, size, 3) at a position drawn uniformly."""
    top = random_offset(pixels.shape[0] - size, generator)
    left = random_offset(pixels.shape[1] - size, generator)
    return pixels[top : top + size, left : left + size]


def resized_square(image: Image.Image, left: int, top: int, side: int, target: int) -> np.ndarray:
    """Crop a square of `side` pixels at (left, top) and resize it: (target, target, 3) uint8. Shrinks by area."""
    cut = image.crop((left, top, left + side, top + side))
    if target > side:
        return np.asarray(cut.resize((target, target), Image.Resampling.LANCZOS))
    return area_resize(np.asarray(cut), target)


def area_resize(pixels: np.ndarray, target: int) -> np.ndarray:
    """Shrink (side, side, 3) uint8 to (target, target, 3) uint8 by averaging areas, 1 <= target <= side.

    Implements TensorFlow's AREA method with align_corners, as in the listings. Pillow's similar filter, BOX, gives
    each pixel a weight of 0 or 1, which makes edges jagged at the scales of 1 to 3/2 used for small images.
    """
    if target == pixels.shape[0]:
        return pixels
    rows = area_means(pixels, target)  # (target, side, 3)
    means = area_means(rows.swapaxes(0, 1), target).swapaxes(0, 1)  # (target, target, 3)
    return np.rint(means.clip(0, 255)).astype(np.uint8)


def area_means(values: np.ndarray, target: int) -> np.ndarray:
    """Average the first axis over `target` intervals of equal length: (n, ...) -> (target, ...) float32.

    Intervals have length (n-1)/(target-1) and start at 0, so the last one extends past the end, where the last value
    is repeated. Elements that cross a boundary are weighted by their overlap.
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
