"""Shape detector for images of the `blocks` world, without learned parts.

Pixels are labelled by colour, connected pixels of one label form a patch, and a patch is classified as the shape whose
stencil has the highest overlap, if the overlap is large enough.
"""

from dataclasses import dataclass
from functools import reduce

import numpy as np
from PIL import Image, ImageDraw

from dalle.data.blocks_scene import BACKGROUND, COLOURS, OUTLINES, RADII

SIDE = 64  # images are resized to this resolution
PURE = 70.0  # RGB distance up to which a pixel is labelled by its colour alone; two colours are over 100 apart
REACH = 3  # pixels around a solid patch of a colour in which mixed pixels may belong to it
SPECK = 0.004  # share of the image below which a blob is ignored as noise; the smallest triangle covers 0.019
OVERLAP = 0.82  # least intersection over union with a shape's stencil; a circle has 0.83 with a square
ROUGHNESS = 0.6  # most pixels missed or in excess, per pixel of the shape's outline; matters for large shapes
# relative to the radius computed from a patch's area: soft corners reduce a square's area
SCALES = (0.96, 0.98, 1.0, 1.02, 1.04)
SMALL = float(np.sqrt(RADII["small"] * RADII["large"]))  # radius below which an object is small

BACKGROUND_LABEL = len(COLOURS)
STRAY_LABEL = BACKGROUND_LABEL + 1  # neither background nor a colour of the world
PALETTE = np.array([*COLOURS.values(), BACKGROUND], dtype=np.float32)  # (7, 3)


@dataclass(frozen=True)
class Blob:
    """Detected object: a connected patch of one colour."""

    colour: str | None  # None: no colour of the world
    shape: str | None  # None: no shape overlaps it enough
    size: str
    x: float  # centre of the shape's bounding box, in pixels
    y: float
    mask: np.ndarray  # (SIDE, SIDE) bool


def find_blobs(image: Image.Image) -> list[Blob]:
    """Find all blobs of a square image that are neither background nor noise, largest first.

    Raises:
        ValueError: an image that is not square.
    """
    if image.width != image.height:
        raise ValueError(f"the judge reads square pictures, and this one is {image.width} x {image.height}")
    image = image.convert("RGB")
    if image.width != SIDE:
        image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    labels = name_pixels(np.asarray(image, dtype=np.float32))
    patches, patch_labels = connected_patches(labels)
    areas = np.bincount(patches.ravel())
    names = [*COLOURS, "background", None]
    return [
        recognise(patches == patch, names[patch_labels[patch]])
        for patch in np.argsort(-areas, kind="stable")
        if patch_labels[patch] != BACKGROUND_LABEL and areas[patch] >= SPECK * SIDE * SIDE
    ]


def name_pixels(pixels: np.ndarray) -> np.ndarray:
    """Label RGB pixels (h, w, 3): (h, w) indices into COLOURS, BACKGROUND_LABEL, or STRAY_LABEL.

    The edge of a red object on white contains orange pixels, so a pixel may only take a colour with a solid patch
    nearby. An edge between two patches is then placed where the pixels are mixed half and half. Pixels with no colour
    nearby are background or stray.
    """
    height, width, _ = pixels.shape
    flat = pixels.reshape(-1, 3)
    products = (PALETTE @ flat.T).reshape(-1, height, width)
    distances = (PALETTE**2).sum(1)[:, None, None] - 2 * products + (pixels**2).sum(2)  # (7, h, w), squared
    pure = distances.min(axis=0) < PURE**2
    named = (np.arange(len(PALETTE))[:, None, None] == distances.argmin(axis=0)) & pure
    solid = _window_sum(named, 1) >= 7  # of 3 x 3: excludes lines of one or two pixels, and tolerates noise
    near = _window_sum(solid, REACH) > 0
    near[BACKGROUND_LABEL] = True  # a narrow gap may have no solid pixels, but still separates objects
    stray = ~near[:BACKGROUND_LABEL].any(axis=0) & (distances[BACKGROUND_LABEL] >= PURE**2)
    stray |= _window_sum(~pure[None], 1)[0] == 9  # wider than any edge between two colours
    return np.where(stray, STRAY_LABEL, np.where(near, distances, np.inf).argmin(axis=0))


def _window_sum(planes: np.ndarray, radius: int) -> np.ndarray:
    """Count the set pixels in the (2 radius + 1)^2 window around each pixel; `planes` (k, h, w) bool.

    The image is padded with its edge pixels.
    """
    # scipy.ndimage.correlate1d takes twice as long on images this small, and `make gpu` runs without SciPy
    margin = (radius, radius)
    padded = np.pad(planes.astype(np.uint8), ((0, 0), margin, margin), mode="edge")
    _, height, width = planes.shape
    rows = reduce(np.add, [padded[:, i : i + height] for i in range(2 * radius + 1)])
    return reduce(np.add, [rows[:, :, i : i + width] for i in range(2 * radius + 1)])


def connected_patches(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find 4-connected patches of equal label: ids (h, w), and the label of each id.

    Runs along the rows are joined with the runs that they touch in the row below.
    """
    # scipy.ndimage.label handles one label at a time, and takes twice as long
    starts = np.ones(labels.shape, dtype=bool)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    runs = starts.cumsum().reshape(labels.shape) - 1
    meets = (labels[:-1] == labels[1:]) & (starts[:-1] | starts[1:])
    parents = list(range(int(runs[-1, -1]) + 1))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    for upper, lower in zip(runs[:-1][meets].tolist(), runs[1:][meets].tolist(), strict=True):
        parents[root(lower)] = root(upper)
    roots, patch_of_run = np.unique([root(run) for run in parents], return_inverse=True)
    return patch_of_run[runs], labels[starts][roots]


# --- classification of patches by shape -------------------------------------------------------------------


def _area_and_centroid(outline: np.ndarray) -> tuple[float, np.ndarray]:
    following = np.roll(outline, -1, axis=0)
    crosses = outline[:, 0] * following[:, 1] - outline[:, 1] * following[:, 0]  # the shoelace formula
    area = crosses.sum() / 2
    return abs(area), ((outline + following) * crosses[:, None]).sum(axis=0) / (6 * area)


def _perimeter(outline: np.ndarray) -> float:
    return float(np.linalg.norm(outline - np.roll(outline, -1, axis=0), axis=1).sum())


STENCIL = 256  # pixels along a stencil, which shows a shape of radius 1 in a square of radius STENCIL_RADIUS
STENCIL_RADIUS = 1.25


def _stencil(outline: np.ndarray) -> np.ndarray:
    canvas = Image.new("1", (STENCIL, STENCIL))
    corners = (outline / STENCIL_RADIUS + 1) * STENCIL / 2 - 0.5
    ImageDraw.Draw(canvas).polygon(corners.ravel().tolist(), fill=1)
    return np.asarray(canvas)


@dataclass(frozen=True)
class Candidates:
    """Shape hypotheses for a patch, every shape at every scale: arrays of n = shapes x scales along the first axis."""

    shapes: tuple[str, ...]
    radii: np.ndarray  # (n,) radius for a patch of area 1
    offsets: np.ndarray  # (n, 2) from the middle of the bounding box to the centroid, in radii
    perimeters: np.ndarray  # (n,) in radii
    stencils: np.ndarray  # (shapes, STENCIL, STENCIL) bool
    stencil_of: np.ndarray  # (n,)


def _candidates() -> Candidates:
    every = [(index, shape, scale) for index, shape in enumerate(OUTLINES) for scale in SCALES]
    moments = {shape: _area_and_centroid(outline) for shape, outline in OUTLINES.items()}
    return Candidates(
        shapes=tuple(shape for _, shape, _ in every),
        radii=np.array([scale / moments[shape][0] ** 0.5 for _, shape, scale in every]),
        offsets=np.array([moments[shape][1] for _, shape, _ in every]),
        perimeters=np.array([_perimeter(OUTLINES[shape]) for _, shape, _ in every]),
        stencils=np.stack([_stencil(outline) for outline in OUTLINES.values()]),
        stencil_of=np.array([index for index, _, _ in every]),
    )


CANDIDATES = _candidates()


def recognise(mask: np.ndarray, colour: str | None) -> Blob:
    """Classify a patch (h, w) bool: overlay each shape hypothesis with the patch's centroid and about its area."""
    rows, columns = np.nonzero(mask)
    left, top = max(columns.min() - 2, 0), max(rows.min() - 2, 0)  # 2: a shape may extend beyond the patch
    patch = mask[top : rows.max() + 3, left : columns.max() + 3]
    radii = CANDIDATES.radii * np.sqrt(len(rows))  # (n,)
    centroid = np.array([columns.mean(), rows.mean()]) + 0.5
    centres = centroid - radii[:, None] * CANDIDATES.offsets  # (n, 2)

    x = _stencil_positions(left, patch.shape[1], centres[:, 0], radii)  # (n, w)
    y = _stencil_positions(top, patch.shape[0], centres[:, 1], radii)  # (n, h)
    stencil_of = CANDIDATES.stencil_of[:, None, None]
    laid = CANDIDATES.stencils[stencil_of, y[:, :, None], x[:, None, :]]  # (n, h, w)
    common = (laid & patch).sum(axis=(1, 2))
    union = laid.sum(axis=(1, 2)) + len(rows) - common

    best = int((common / union).argmax())
    fits = common[best] >= OVERLAP * union[best]
    smooth = union[best] - common[best] <= ROUGHNESS * CANDIDATES.perimeters[best] * radii[best]
    return Blob(
        colour=colour,
        shape=CANDIDATES.shapes[best] if fits and smooth else None,
        size="small" if radii[best] < SMALL * SIDE else "large",
        x=float(centres[best, 0]),
        y=float(centres[best, 1]),
        mask=mask,
    )


def _stencil_positions(start: int, length: int, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Stencil coordinates of the centres of `length` pixels from `start` on: (n, length) of int."""
    pixels = np.arange(start, start + length) + 0.5
    units = (pixels - centres[:, None]) / radii[:, None]
    return ((units / STENCIL_RADIUS + 1) * STENCIL / 2).astype(int).clip(0, STENCIL - 1)
