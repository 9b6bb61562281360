"""Judge of `blocks`: true and false statements, tolerance of small image defects, the shape detector."""

from io import BytesIO

import numpy as np
import pytest
from changed_statements import one_fact_changed
from PIL import Image, ImageDraw

from dalle.data.blocks import SPLITS, BlocksConfig, BlocksSource
from dalle.data.blocks_scene import (
    BACKGROUND,
    COLOURS,
    NounPhrase,
    Relation,
    Scene,
    SceneObject,
    Statement,
    draw,
)
from dalle.evaluation.judges.blocks_judge import judge
from dalle.evaluation.judges.shape_detector import connected_components, detect_shapes

RED, BLUE, YELLOW = COLOURS["red"], COLOURS["blue"], COLOURS["yellow"]


def scenes(split, number):
    source = BlocksSource(BlocksConfig(), split)
    return [source.scene(index) for index in range(number)]


def draw_shapes(*shapes):
    """Draw a 64 px image; `shapes` are functions that draw on a canvas of 512 x 512."""
    image = Image.new("RGB", (512, 512), BACKGROUND)
    for shape in shapes:
        shape(ImageDraw.Draw(image))
    return image.reduce(8)


def disc(x=256, y=256, radius=97, colour=RED):
    return lambda canvas: canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


LARGE_RED_CIRCLE = Statement((NounPhrase("circle", "red", "large"),))


# --- required accuracy ----------------------------------------------------------------------------


@pytest.mark.parametrize("size, number", [(64, 400), (128, 100), (256, 40)])
@pytest.mark.parametrize("split", SPLITS)
def test_true_statements_hold(split, size, number):
    verdicts = [judge(draw(scene, size), scene.statement).holds for scene in scenes(split, number)]
    assert np.mean(verdicts) >= 0.99


@pytest.mark.parametrize("size, number", [(64, 120), (256, 15)])
@pytest.mark.parametrize("split", SPLITS)
def test_statements_with_one_fact_changed_are_rejected(split, size, number):
    generator = np.random.default_rng(0)
    rejected = []
    for scene in scenes(split, number):
        image = draw(scene, size)
        for statements in one_fact_changed(scene.statement).values():
            statement = statements[generator.integers(len(statements))]
            rejected.append(not judge(image, statement).holds)
    assert np.mean(rejected) >= 0.99


# --- tolerated defects -------------------------------------------------------------------------------------


def blurred(image, generator, sigma=0.7):
    kernel = np.exp(-0.5 * (np.arange(-3, 4) / sigma) ** 2)
    pixels = np.pad(np.asarray(image, dtype=float), ((3, 3), (3, 3), (0, 0)), mode="edge")
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(pixels, 7, axis=axis)
        pixels = windows @ (kernel / kernel.sum())
    return Image.fromarray(pixels.round().astype(np.uint8))


def noisy(image, generator, sigma=8):
    pixels = np.asarray(image) + generator.normal(0, sigma, (*image.size, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def compressed(image, generator):
    stored = BytesIO()
    image.save(stored, "JPEG", quality=50)
    return Image.open(stored).convert("RGB")


def unevenly_lit(image, generator):
    shift = Image.fromarray(generator.normal(0, 10, (8, 8)).astype(np.float32)).resize(image.size)
    return Image.fromarray((np.asarray(image) + np.asarray(shift)[..., None]).clip(0, 255).astype(np.uint8))


def speckled(image, generator):
    pixels = np.array(image)
    for x, y in generator.integers(0, 62, (12, 2)):
        pixels[y : y + 2, x : x + 2] = list(COLOURS.values())[generator.integers(6)]
    return Image.fromarray(pixels)


@pytest.mark.parametrize("degrade", [blurred, noisy, compressed, unevenly_lit])
def test_true_statements_hold_in_degraded_images(degrade):
    generator = np.random.default_rng(0)
    some = [scene for split in SPLITS for scene in scenes(split, 100)]
    images = [degrade(draw(scene, 64), generator) for scene in some]
    verdicts = [judge(image, scene.statement).holds for image, scene in zip(images, some, strict=True)]
    assert np.mean(verdicts) >= 0.97


def test_specks_are_ignored():
    image = speckled(draw_shapes(disc()), np.random.default_rng(0))
    assert judge(image, LARGE_RED_CIRCLE).count


# --- wrong facts -----------------------------------------------------------------------------


def test_large_red_circle_holds():
    assert judge(draw_shapes(disc()), LARGE_RED_CIRCLE).holds


@pytest.mark.parametrize(
    "fact, image",
    [
        ("colours", draw_shapes(disc(colour=BLUE))),
        ("objects", draw_shapes(disc(colour=(139, 69, 19)))),  # brown
        ("objects", draw_shapes(disc(colour=(230, 140, 145)))),  # a pale red
        ("objects", draw_shapes(disc(), disc(colour=(139, 69, 19), radius=42))),  # a brown spot in the middle
        ("sizes", draw_shapes(disc(radius=56))),
        ("count", draw_shapes()),
        ("count", draw_shapes(disc(), disc(60, 60, 22))),  # a second, tiny circle
        ("count", draw_shapes(disc(), lambda canvas: canvas.line((10, 30, 500, 30), fill=BLUE, width=12))),
        ("count", draw_shapes(disc(), disc(60, 60, 40, (190, 190, 190)))),  # a grey shadow
        ("shapes", draw_shapes(disc(200), disc(312))),  # two run into one
        ("shapes", draw_shapes(disc(), disc(radius=50, colour=BACKGROUND))),  # a ring
        ("shapes", draw_shapes(disc(), disc(290, 256, 35, YELLOW))),
        ("shapes", draw_shapes(disc(20))),  # cut by the edge
        ("shapes", draw_shapes(lambda canvas: canvas.ellipse((159, 181, 353, 331), fill=RED))),
        ("shapes", draw_shapes(lambda canvas: canvas.pieslice((159, 159, 353, 353), 0, 270, fill=RED))),
        ("shapes", draw_shapes(lambda canvas: canvas.polygon((256, 150, 362, 256, 256, 362, 150, 256), fill=RED))),
        ("shapes", draw_shapes(lambda canvas: canvas.polygon((159, 180, 353, 180, 256, 340), fill=RED))),
    ],
)
def test_wrong_fact_is_identified(fact, image):
    verdict = judge(image, LARGE_RED_CIRCLE)
    assert not verdict.holds
    assert not getattr(verdict, fact)


def test_swapped_attributes_and_positions_are_detected():
    scene = Scene(
        (SceneObject("circle", "red", "small", 0.3, 0.5, 0.11), SceneObject("square", "blue", "small", 0.7, 0.5, 0.11)),
        Statement(()),
    )
    image = draw(scene, 64)
    red_circle, blue_square = NounPhrase("circle", "red"), NounPhrase("square", "blue")
    left_of = (Relation(0, "left of", 1),)
    assert judge(image, Statement((red_circle, blue_square), left_of)).holds
    assert judge(image, Statement((blue_square, red_circle), (Relation(1, "left of", 0),))).holds
    swapped = judge(image, Statement((NounPhrase("circle", "blue"), NounPhrase("square", "red")), left_of))
    assert not swapped.holds and swapped.objects and swapped.count
    turned = judge(image, Statement((blue_square, red_circle), left_of))
    assert turned.colours and turned.shapes and not turned.relation


@pytest.mark.parametrize("gap, rests", [(0.0, True), (0.06, False)])
def test_on_top_of_requires_contact(gap, rests):
    lower = SceneObject("square", "blue", "large", 0.5, 0.7, 0.19)
    upper = SceneObject("circle", "red", "small", 0.5, 0.7 - 0.88 * 0.19 - 0.11 - gap, 0.11)
    image = draw(Scene((upper, lower), Statement(())), 64)
    things = (NounPhrase("circle", "red"), NounPhrase("square", "blue"))
    assert judge(image, Statement(things, (Relation(0, "above", 1),))).holds
    assert judge(image, Statement(things, (Relation(0, "on top of", 1),))).holds == rests
    assert not judge(image, Statement(things, (Relation(1, "on top of", 0),))).holds


def test_unstated_size_is_not_checked():
    statement = Statement((NounPhrase("circle", "red"),))
    assert judge(draw_shapes(disc()), statement).holds
    assert judge(draw_shapes(disc(radius=56)), statement).holds


def test_image_that_is_not_square_raises():
    with pytest.raises(ValueError, match="64 x 32"):
        detect_shapes(Image.new("RGB", (64, 32)))


def test_connected_components_match_a_flood_fill():
    labels = np.random.default_rng(0).integers(0, 2, (12, 12))
    components, names = connected_components(labels)
    assert (names[components] == labels).all()
    unseen = {(y, x) for y in range(12) for x in range(12)}
    fills = 0
    while unseen:
        fill, front = set(), [min(unseen)]
        while front:
            y, x = front.pop()
            if (y, x) in unseen and (not fill or labels[y, x] == labels[min(fill)]):
                unseen.remove((y, x))
                fill.add((y, x))
                front += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        assert len({int(components[pixel]) for pixel in fill}) == 1
        fills += 1
    assert fills == len(names)
