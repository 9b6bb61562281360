"""Image transforms: the paper's numbers, for images of every size and mode."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dalle.data import transforms
from dalle.data.transforms import (
    area_resize,
    dvae_augmentation,
    get_transform,
    inference_crop,
    on_white,
    transformer_augmentation,
)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ramp(width: int, height: int) -> Image.Image:
    """Return an image whose red is the column and green the row, so that crops can be located."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


class Recorder:
    """Generator that records the range of every draw."""

    def __init__(self, seed: int):
        self.generator = np.random.default_rng(seed)
        self.ranges: list[tuple[int, int]] = []

    def integers(self, low: int, high: int | None = None, endpoint: bool = False) -> int:
        first, last = (0, low) if high is None else (low, high)
        self.ranges.append((int(first), int(last) if endpoint else int(last) - 1))
        return int(self.generator.integers(low, high, endpoint=endpoint))

    def random(self) -> float:
        return self.generator.random()


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(sorted(transforms.TRANSFORMS)),
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(1, 48),
    seed=st.integers(0, 99),
)
def test_every_image_becomes_a_square_deterministically(name, width, height, size, seed):
    image = noise(width, height)
    transform = get_transform(name)
    pixels = transform(image, size, np.random.default_rng(seed))
    assert pixels.shape == (size, size, 3) and pixels.dtype == np.uint8
    assert np.array_equal(pixels, transform(image, size, np.random.default_rng(seed)))
    assert image == noise(width, height)


def test_dvae_augmentation_uses_the_papers_ranges():
    recorder: Any = Recorder(0)
    dvae_augmentation(noise(500, 420), 256, recorder)
    left, top, side, *crop = recorder.ranges
    assert (left, top) == ((0, 80), (0, 0))
    assert side == (288, 384)  # 9/8 and 12/8 of 256
    assert crop[0] == crop[1] and 288 - 256 <= crop[0][1] <= 384 - 256


def test_dvae_augmentation_scales_at_most_to_the_square():
    for shorter, expected in ((300, (288, 300)), (270, (270, 270)), (256, (256, 256)), (100, (100, 100))):
        recorder: Any = Recorder(0)
        dvae_augmentation(noise(shorter + 50, shorter), 256, recorder)
        assert recorder.ranges[2] == expected


def test_transformer_augmentation_uses_the_papers_ranges():
    recorder: Any = Recorder(0)
    transformer_augmentation(noise(500, 420), 256, recorder)
    left, top, side, *crop = recorder.ranges
    assert (left, top) == ((30, 49), (0, 0))  # 3 * 80 // 8 to 5 * 80 // 8, exclusive
    assert side == (256, 288)
    assert crop[0] == crop[1] and 0 <= crop[0][1] <= 32


def test_transformer_augmentation_scales_at_most_to_the_square():
    for shorter, expected in ((270, (256, 270)), (256, (256, 256)), (100, (256, 256))):
        recorder: Any = Recorder(0)
        transformer_augmentation(noise(shorter, shorter), 256, recorder)
        assert recorder.ranges[2] == expected


def test_scaling_to_64_keeps_aspect_ratio():
    recorder: Any = Recorder(0)
    dvae_augmentation(noise(200, 200), 64, recorder)
    assert recorder.ranges[2] == (72, 96)


def test_only_dvae_augmentation_flips():
    def directions(transform):
        draws = [transform(ramp(64, 64), 64, np.random.default_rng(seed))[0, :, 0] for seed in range(30)]
        return {bool(row[0] < row[-1]) for row in draws}

    assert directions(dvae_augmentation) == {True, False}
    assert directions(transformer_augmentation) == {True}


def test_augmentations_do_not_scale_images_of_the_right_size():
    image = noise(32, 32)
    plain = np.asarray(image)
    assert np.array_equal(transformer_augmentation(image, 32, np.random.default_rng(0)), plain)
    augmented = dvae_augmentation(image, 32, np.random.default_rng(0))
    assert np.array_equal(augmented, plain) or np.array_equal(augmented, plain[:, ::-1])


def test_inference_crop_equals_resize_then_centre_crop():
    for width, height in ((91, 60), (64, 150), (640, 481)):
        image = noise(width, height)
        scale = 48 / min(width, height)
        scaled = image.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
        left, top = round((scaled.width - 48) / 2), round((scaled.height - 48) / 2)
        expected = np.asarray(scaled.crop((left, top, left + 48, top + 48))).astype(int)
        assert np.abs(inference_crop(image, 48) - expected).max() <= 1


def test_extreme_aspect_ratios_need_little_memory():
    assert inference_crop(Image.new("RGB", (1, 200_000)), 256).shape == (256, 256, 3)
    assert dvae_augmentation(Image.new("RGB", (200_000, 1)), 256, np.random.default_rng(0)).shape[0] == 256


def test_area_resize_equals_area_mean():
    side, target = 11, 7
    pixels = np.asarray(noise(side, side)).astype(np.float64)
    length = (side - 1) / (target - 1)
    fine = 6  # length = 10/6: in steps of 1/6 all borders fall between the small cells
    small = pixels.repeat(fine, axis=0).repeat(fine, axis=1)
    small = np.pad(small, ((0, fine), (0, fine), (0, 0)), mode="edge")
    step = round(length * fine)
    for i in range(target):
        for j in range(target):
            cell = small[i * step : (i + 1) * step, j * step : (j + 1) * step].mean(axis=(0, 1))
            # half a grey level of rounding, and a little for float32
            assert np.abs(area_resize(pixels.astype(np.uint8), target)[i, j] - cell).max() <= 0.501


@settings(deadline=None, max_examples=30)
@given(side=st.integers(1, 60), share=st.floats(0, 1), grey=st.integers(0, 255))
def test_area_resize_keeps_a_uniform_image(side, share, grey):
    target = max(1, round(side * share))
    resized = area_resize(np.full((side, side, 3), grey, dtype=np.uint8), target)
    assert resized.shape == (target, target, 3)
    assert (resized == grey).all()


def test_transparency_becomes_white():
    clear_red = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half_black = Image.new("LA", (4, 4), (0, 128))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30])
    palette.info["transparency"] = 0
    assert on_white(clear_red).getpixel((0, 0)) == (255, 255, 255)
    assert on_white(half_black).getpixel((0, 0)) == (127, 127, 127)
    assert on_white(palette).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "HSV", "F", "RGBX", "RGBa", "PA"])
def test_every_mode_becomes_rgb(mode):
    assert on_white(Image.new(mode, (3, 2))).mode == "RGB"


def test_sixteen_bit_greys_are_scaled_not_clipped():
    greys = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    assert [on_white(greys).getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (100,) * 3, (255,) * 3]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "I;16"])
def test_large_images_are_converted_as_small_ones(mode):
    values = np.random.default_rng(0).integers(0, 256, (transforms.TILE + 5, transforms.TILE + 300, 4), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(values.view(np.uint16)[..., 0].copy())
    else:
        image = Image.fromarray(values if mode in ("RGBA", "LA") else values[..., :3].copy()).convert(mode)
    image.info |= {"transparency": 3} if mode == "P" else {}
    whole = on_white(image)
    for box in [(0, 0, 40, 40), (1000, 1000, 1040, 1029), (1300, 1020, 1324, 1029)]:
        assert whole.crop(box).tobytes() == on_white(image.crop(box)).tobytes()


def test_large_sixteen_bit_greys_take_little_memory_to_convert():
    image = Image.fromarray(np.full((4000, 4000), 257 * 100, np.uint16))
    tracemalloc.start()
    try:
        assert on_white(image).getpixel((3999, 3999)) == (100, 100, 100)
        assert tracemalloc.get_traced_memory()[1] < 60_000_000  # bytes; a float64 for each pixel is 128 million
    finally:
        tracemalloc.stop()


def test_unknown_transform_lists_the_choices():
    with pytest.raises(ValueError, match="no transform 'dva'; choose one of dvae, transformer, none"):
        get_transform("dva")
    assert set(transforms.TRANSFORMS) == {"dvae", "transformer", "none", "channel_shuffle", "affine", "placement"}


def test_channel_shuffle_permutes_channels_of_a_quarter_of_images():
    image = ramp(32, 32)
    plain = inference_crop(image, 32)
    draws = [transforms.channel_shuffle(image, 32, np.random.default_rng(seed)) for seed in range(400)]
    assert all((np.sort(pixels, axis=-1) == np.sort(plain, axis=-1)).all() for pixels in draws)
    changed = [pixels for pixels in draws if (pixels != plain).any()]
    assert 0.14 < len(changed) / len(draws) < 0.28  # a quarter, of which one in six comes out as it was
    assert len({pixels.tobytes() for pixels in changed}) == 5


class Drawn:
    """Generator whose uniform numbers are given: scale, turn and both shifts of `affine_augmentation`."""

    def __init__(self, zoom: float = 1.0, turn: float = 0.0, x: float = 0.0, y: float = 0.0):
        self.values = np.array([zoom, turn, x, y])

    def uniform(self, low, high) -> np.ndarray:
        assert (np.array(low) <= self.values).all() and (self.values <= np.array(high)).all()
        return self.values


def dark_pixels(generator) -> np.ndarray:
    """Return row and column numbers of the dark pixels of a black rectangle on white after `affine_augmentation`."""
    image = Image.new("RGB", (100, 100), "white")
    image.paste("black", (40, 30, 60, 70))  # 20 wide, 40 high, in the middle
    return np.argwhere(transforms.affine_augmentation(image, 100, generator)[..., 0] < 128)


def test_affine_augmentation_without_change_is_the_image():
    found = dark_pixels(Drawn())
    assert (found.min(axis=0).tolist(), found.max(axis=0).tolist()) == ([30, 40], [69, 59])


def test_affine_augmentation_scales_about_the_centre_and_shifts():
    larger = np.ptp(dark_pixels(Drawn(zoom=1.2)), axis=0) + 1
    smaller = np.ptp(dark_pixels(Drawn(zoom=0.8)), axis=0) + 1
    assert larger == pytest.approx([48, 24], abs=1) and smaller == pytest.approx([32, 16], abs=1)
    assert dark_pixels(Drawn(zoom=0.8)).mean(axis=0) == pytest.approx([49.5, 49.5], abs=0.5)
    moved = dark_pixels(Drawn(x=1.0, y=-1.0)).mean(axis=0) - dark_pixels(Drawn()).mean(axis=0)
    assert moved == pytest.approx([-100 * transforms.MAX_SHIFT, 100 * transforms.MAX_SHIFT], abs=0.5)


def test_affine_augmentation_turns_by_the_angle_and_leaves_white_outside():
    found = dark_pixels(Drawn(turn=1.0))
    rows, columns = (found - found.mean(axis=0)).T
    angle = 0.5 * np.degrees(np.arctan2(2 * (rows * columns).mean(), (rows**2).mean() - (columns**2).mean()))
    assert abs(angle) == pytest.approx(transforms.MAX_TURN, abs=1)
    corners = transforms.affine_augmentation(Image.new("RGB", (50, 50)), 50, Drawn(zoom=0.8))[
        [0, 0, -1, -1], [0, -1, 0, -1]
    ]
    assert (corners == 255).all()


def dark_box(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """Return the first and last row and column with dark pixels: (top, bottom, left, right)."""
    rows, columns = np.nonzero(pixels[..., 0] < 128)
    return rows.min(), rows.max(), columns.min(), columns.max()


def test_random_placement_keeps_the_whole_image_at_many_scales_and_positions():
    image = Image.new("RGB", (80, 80), "black")
    boxes = [dark_box(transforms.random_placement(image, 64, np.random.default_rng(seed))) for seed in range(500)]
    heights = [bottom - top + 1 for top, bottom, _, _ in boxes]
    assert heights == [right - left + 1 for _, _, left, right in boxes]
    assert set(heights) == set(range(55, 65))  # 85 to 100% of 64 pixels
    assert {top for top, *_ in boxes} == {left for _, _, left, _ in boxes} == set(range(10))
    assert all(bottom < 64 and right < 64 for _, bottom, _, right in boxes)
    unchanged = heights.count(64) / len(heights)
    assert 0.45 < unchanged < 0.65  # half, and a tenth of the others by chance


def test_random_placement_shrinks_the_image_as_at_inference_and_leaves_white_around_it():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 200, (80, 80, 3), np.uint8))
    for seed in range(10):
        placed = transforms.random_placement(image, 64, np.random.default_rng(seed))
        rows, columns = np.nonzero((placed < 255).any(axis=-1))
        side = rows.max() + 1 - rows.min()
        box = np.s_[rows.min() : rows.min() + side, columns.min() : columns.min() + side]
        np.testing.assert_array_equal(placed[box], transforms.inference_crop(image, side))
        outside = placed.copy()
        outside[box] = 255
        assert (outside == 255).all()
