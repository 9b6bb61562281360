"""Shape detector for images of the `blocks` world, without learned parameters.

Pixels are labelled by colour. Each connected component of one label is classified by template matching: it is the shape
whose template has the highest intersection over union with it, if that is large enough.
"""

from dataclasses import dataclass
from functools import reduce

import numpy as np
from PIL import Image, ImageDraw

from dalle.data.blocks_scene import BACKGROUND, COLOURS, OUTLINES, RADII

RESOLUTION = 64  # images are resized to this number of pixels a side
MAX_COLOUR_DISTANCE = 70.0  # in RGB, up to which a pixel is labelled by its colour alone; colours are over 100 apart
EDGE_RADIUS = 3  # pixels around a solid region of a colour in which mixed pixels may belong to it
MIN_AREA = 0.004  # share of the image below which a component is ignored as noise; the smallest triangle covers 0.019
MIN_IOU = 0.82  # least intersection over union with a shape's template; a circle has 0.83 with a square
MAX_OUTLINE_ERROR = 0.6  # most differing pixels per pixel of the shape's outline; matters for large shapes
# of templates, relative to the radius computed from a component's area: soft corners reduce a square's area
SCALES = (0.96, 0.98, 1.0, 1.02, 1.04)
MAX_SMALL_RADIUS = float(np.sqrt(RADII["small"] * RADII["large"]))  # radius below which an object is small

BACKGROUND_LABEL = len(COLOURS)
UNKNOWN_LABEL = BACKGROUND_LABEL + 1  # neither background nor a colour of the world
PALETTE = np.array([*COLOURS.values(), BACKGROUND], dtype=np.float32)  # (7, 3)


@dataclass(frozen=True)
class DetectedShape:
    """One object detected in an image: a connected component of one colour, with its shape, size and centre."""

    colour: str | None  # None: no colour of the world
    shape: str | None  # None: no shape matches
    size: str
    x: float  # centre of the shape's bounding box, in pixels
    y: float
    mask: np.ndarray  # (RESOLUTION, RESOLUTION) bool


def detect_shapes(image: Image.Image) -> list[DetectedShape]:
    """Detect all objects in a square image, that is, components that are neither background nor noise, largest first.

    Raises:
        ValueError: an image that is not square.
    """
    if image.width != image.height:
        raise ValueError(f"the judge needs a square image, but this one is {image.width} x {image.height}")
    image = image.convert("RGB")
    if image.width != RESOLUTION:
        image = image.resize((RESOLUTION, RESOLUTION), Image.Resampling.BOX)
    labels = label_pixels(np.asarray(image, dtype=np.float32))
    components, component_labels = connected_components(labels)
    areas = np.bincount(components.ravel())
    names = [*COLOURS, "background", None]
    return [
        classify_component(components == index, names[component_labels[index]])
        for index in np.argsort(-areas, kind="stable")
        if component_labels[index] != BACKGROUND_LABEL and areas[index] >= MIN_AREA * RESOLUTION * RESOLUTION
    ]


def label_pixels(pixels: np.ndarray) -> np.ndarray:
    """Label RGB pixels (h, w, 3): (h, w) indices into COLOURS, BACKGROUND_LABEL, or UNKNOWN_LABEL.

    The edge of a red object on white contains orange pixels, so a pixel may only take a colour with a solid region
    nearby. An edge between two regions is then placed where the pixels are mixed half and half. Pixels with no colour
    nearby are background or unknown.
    """
    height, width, _ = pixels.shape
    flat = pixels.reshape(-1, 3)
    products = (PALETTE @ flat.T).reshape(-1, height, width)
    distances = (PALETTE**2).sum(1)[:, None, None] - 2 * products + (pixels**2).sum(2)  # (7, h, w), squared
    is_close = distances.min(axis=0) < MAX_COLOUR_DISTANCE**2
    labelled = (np.arange(len(PALETTE))[:, None, None] == distances.argmin(axis=0)) & is_close
    solid = _window_sum(labelled, 1) >= 7  # of 3 x 3: excludes lines of one or two pixels, and tolerates noise
    has_solid_nearby = _window_sum(solid, EDGE_RADIUS) > 0
    has_solid_nearby[BACKGROUND_LABEL] = True  # a narrow gap may have no solid pixels, but still separates objects
    unknown = ~has_solid_nearby[:BACKGROUND_LABEL].any(axis=0) & (distances[BACKGROUND_LABEL] >= MAX_COLOUR_DISTANCE**2)
    unknown |= _window_sum(~is_close[None], 1)[0] == 9  # wider than any edge between two colours
    return np.where(unknown, UNKNOWN_LABEL, np.where(has_solid_nearby, distances, np.inf).argmin(axis=0))


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


def connected_components(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find 4-connected components of equal label: component indices (h, w), and the label of each component.

    Runs of equal labels within a row are merged with the runs that they touch in the row below (union-find).
    """
    # scipy.ndimage.label handles one label at a time, and takes twice as long
    starts = np.ones(labels.shape, dtype=bool)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    runs = starts.cumsum().reshape(labels.shape) - 1
    joined = (labels[:-1] == labels[1:]) & (starts[:-1] | starts[1:])
    parents = list(range(int(runs[-1, -1]) + 1))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    for upper, lower in zip(runs[:-1][joined].tolist(), runs[1:][joined].tolist(), strict=True):
        parents[root(lower)] = root(upper)
    roots, component_of_run = np.unique([root(run) for run in parents], return_inverse=True)
    return component_of_run[runs], labels[starts][roots]


# --- classification of components by shape -------------------------------------------------------------------


def _area_and_centroid(outline: np.ndarray) -> tuple[float, np.ndarray]:
    next_corners = np.roll(outline, -1, axis=0)
    crosses = outline[:, 0] * next_corners[:, 1] - outline[:, 1] * next_corners[:, 0]  # the shoelace formula
    area = crosses.sum() / 2
    return abs(area), ((outline + next_corners) * crosses[:, None]).sum(axis=0) / (6 * area)


def _perimeter(outline: np.ndarray) -> float:
    return float(np.linalg.norm(outline - np.roll(outline, -1, axis=0), axis=1).sum())


TEMPLATE_SIZE = 256  # pixels a side of a template, which has a shape of radius 1 in a square of radius TEMPLATE_RADIUS
TEMPLATE_RADIUS = 1.25


def _render_template(outline: np.ndarray) -> np.ndarray:
    canvas = Image.new("1", (TEMPLATE_SIZE, TEMPLATE_SIZE))
    corners = (outline / TEMPLATE_RADIUS + 1) * TEMPLATE_SIZE / 2 - 0.5
    ImageDraw.Draw(canvas).polygon(corners.ravel().tolist(), fill=1)
    return np.asarray(canvas)


@dataclass(frozen=True)
class ShapeTemplates:
    """Templates of every shape at every scale: arrays of n = shapes x scales along the first axis."""

    shapes: tuple[str, ...]
    radii: np.ndarray  # (n,) radius for a component of area 1
    offsets: np.ndarray  # (n, 2) from the middle of the bounding box to the centroid, in radii
    perimeters: np.ndarray  # (n,) in radii
    masks: np.ndarray  # (shapes, TEMPLATE_SIZE, TEMPLATE_SIZE) bool
    mask_of: np.ndarray  # (n,) index into masks


def _build_templates() -> ShapeTemplates:
    pairs = [(index, shape, scale) for index, shape in enumerate(OUTLINES) for scale in SCALES]
    moments = {shape: _area_and_centroid(outline) for shape, outline in OUTLINES.items()}
    return ShapeTemplates(
        shapes=tuple(shape for _, shape, _ in pairs),
        radii=np.array([scale / moments[shape][0] ** 0.5 for _, shape, scale in pairs]),
        offsets=np.array([moments[shape][1] for _, shape, _ in pairs]),
        perimeters=np.array([_perimeter(OUTLINES[shape]) for _, shape, _ in pairs]),
        masks=np.stack([_render_template(outline) for outline in OUTLINES.values()]),
        mask_of=np.array([index for index, _, _ in pairs]),
    )


TEMPLATES = _build_templates()


def classify_component(mask: np.ndarray, colour: str | None) -> DetectedShape:
    """Classify a component (h, w) bool: compare it with each template, aligned to its centroid and about its area."""
    rows, columns = np.nonzero(mask)
    left, top = max(columns.min() - 2, 0), max(rows.min() - 2, 0)  # 2: a shape may extend beyond the component
    component = mask[top : rows.max() + 3, left : columns.max() + 3]
    radii = TEMPLATES.radii * np.sqrt(len(rows))  # (n,)
    centroid = np.array([columns.mean(), rows.mean()]) + 0.5
    centres = centroid - radii[:, None] * TEMPLATES.offsets  # (n, 2)

    x = _template_coordinates(left, component.shape[1], centres[:, 0], radii)  # (n, w)
    y = _template_coordinates(top, component.shape[0], centres[:, 1], radii)  # (n, h)
    mask_of = TEMPLATES.mask_of[:, None, None]
    rendered = TEMPLATES.masks[mask_of, y[:, :, None], x[:, None, :]]  # (n, h, w)
    intersection = (rendered & component).sum(axis=(1, 2))
    union = rendered.sum(axis=(1, 2)) + len(rows) - intersection

    best = int((intersection / union).argmax())
    fits = intersection[best] >= MIN_IOU * union[best]
    smooth = union[best] - intersection[best] <= MAX_OUTLINE_ERROR * TEMPLATES.perimeters[best] * radii[best]
    return DetectedShape(
        colour=colour,
        shape=TEMPLATES.shapes[best] if fits and smooth else None,
        size="small" if radii[best] < MAX_SMALL_RADIUS * RESOLUTION else "large",
        x=float(centres[best, 0]),
        y=float(centres[best, 1]),
        mask=mask,
    )


def _template_coordinates(start: int, length: int, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Convert the pixels `start` to `start + length` of one axis to coordinates in n templates: (n, length) of int."""
    pixels = np.arange(start, start + length) + 0.5
    units = (pixels - centres[:, None]) / radii[:, None]
    return ((units / TEMPLATE_RADIUS + 1) * TEMPLATE_SIZE / 2).astype(int).clip(0, TEMPLATE_SIZE - 1)
