import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dalle.data.audit import perceptual_hash as module
from dalle.data.audit.perceptual_hash import (
    NEAR_BITS,
    NEAR_LEVELS,
    colour_distance,
    hamming_distance,
    perceptual_hash,
    perceptual_hashes,
)
from dalle.data.blocks import BlocksConfig, BlocksSource
from dalle.data.source import UnreadableRecord

SOURCE = BlocksSource(BlocksConfig(train=12), "train")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def as_jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(file).convert("RGB")


def apart(one: Image.Image, other: Image.Image) -> tuple[int, int]:
    """Return the numbers of bits and of levels that differ."""
    a, b = perceptual_hash(one), perceptual_hash(other)
    return int(hamming_distance(a["hash"], b["hash"])[0]), int(colour_distance(a["colours"], b["colours"]))


@pytest.mark.parametrize(
    "change", [as_jpeg, lambda image: image.resize((41, 41)), lambda image: image.resize((150, 150))]
)
def test_recompressed_and_resized_copies_match(change):
    for index in range(len(SOURCE)):
        image = SOURCE[index].image
        bits, levels = apart(image, change(image))
        assert bits <= NEAR_BITS
        assert levels <= NEAR_LEVELS


def test_other_images_do_not_match():
    images = [SOURCE[index].image for index in range(len(SOURCE))]
    for place, image in enumerate(images):
        for other in images[:place]:
            bits, levels = apart(image, other)
            assert bits > NEAR_BITS or levels > NEAR_LEVELS


def test_hash_of_a_symmetric_image_is_stable_under_noise():
    """Half of its frequencies are 0; bits from their signs alone would be random."""
    smooth = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(smooth).ellipse((16, 16, 47, 47), fill="#808080")
    noise = np.random.default_rng(0).integers(-2, 3, (64, 64, 3))
    noisy = Image.fromarray((np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8))
    assert apart(smooth, noisy)[0] <= NEAR_BITS


def test_uniform_images_have_zero_bits_and_differ_in_colour():
    assert apart(Image.new("RGB", (50, 40), "red"), Image.new("RGB", (40, 50), "green")) == (0, 255)
    assert int(perceptual_hash(Image.new("RGB", (9, 9), "red"))["hash"]) == 0


def test_hash_uses_the_centre_crop():
    wide = Image.new("RGB", (96, 64), "blue")
    wide.paste(SOURCE[0].image, (16, 0))
    bits, levels = apart(wide, SOURCE[0].image)  # blue reaches a little over the edge as the picture is scaled
    assert bits <= NEAR_BITS and levels <= NEAR_LEVELS
    bits, levels = apart(wide.resize((64, 64)), SOURCE[0].image)
    assert bits > NEAR_BITS or levels > NEAR_LEVELS


def test_hamming_distance():
    hashes = np.random.default_rng(0).integers(0, 2**63, 50, dtype=np.uint64)
    counted = [(int(fingerprint) ^ int(hashes[0])).bit_count() for fingerprint in hashes]
    assert hamming_distance(hashes, hashes[0]).tolist() == counted


class Half(BlocksSource):
    """Source in which every other record is unreadable, until `mended`."""

    opened = 0
    mended = False

    def __getitem__(self, index):
        self.opened += 1
        if index % 2 and not self.mended:
            raise UnreadableRecord(f"train/{index}", "broken")
        return super().__getitem__(index)


def test_hashes_are_cached_and_zero_for_unreadable_images():
    source = Half(BlocksConfig(train=6), "train")
    source.digest = lambda: "digest"
    first = perceptual_hashes(source)
    assert source.opened == 6
    assert first["readable"].tolist() == [True, False] * 3
    assert np.array_equal(perceptual_hashes(source), first)
    assert source.opened == 6 + 3  # those that could not be read
    source.digest = lambda: "another"
    perceptual_hashes(source)
    assert source.opened == 9 + 6
    source.image_size *= 2  # images of files are read smaller for a smaller size
    perceptual_hashes(source)
    assert source.opened == 15 + 6


def test_images_that_could_not_be_read_are_hashed_when_they_can():
    source = Half(BlocksConfig(train=6), "train")
    source.digest = lambda: "digest"
    before = np.array(perceptual_hashes(source))
    source.mended = True
    after = np.array(perceptual_hashes(source))
    assert after["readable"].all() and np.array_equal(after[::2], before[::2])
    opened = source.opened
    assert np.array_equal(perceptual_hashes(source), after) and source.opened == opened


def test_damaged_hash_cache_is_recomputed():
    before = np.array(perceptual_hashes(SOURCE))
    (path,) = module.FOLDER.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert np.array_equal(perceptual_hashes(SOURCE), before)
