"""Perceptual hash of an image in 57 bytes, to find copies in another size, quality or file type.

The hash covers the central square, which is the part that models get. 64 bits mark the lowest frequencies with large
DCT coefficients (as in pHash: Zauner 2010). 16 mean colours distinguish images that differ only in colour. Flipped,
rotated or strongly cropped copies have different hashes.
"""

import os
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from dalle.data.parallel_map import parallel_map
from dalle.data.source import Source, UnreadableRecord
from dalle.data.transforms import inference_crop

HASH_DTYPE = np.dtype([("hash", "<u8"), ("colours", "u1", (4, 4, 3)), ("readable", "?")])
FOLDER = Path("outputs/.fingerprints")  # cache of hashes and features, by the digest of the data and the image size
VERSION = 1  # increase it if the hash of the same image changes

NEAR_BITS = 3  # of 64 that may differ between near duplicates: JPEG compression and scaling change no more
NEAR_LEVELS = 24  # of 255 by which any mean colour may differ between near duplicates

SIDE = 32  # pixels per side of the square that is hashed
FREQUENCIES = sorted(product(range(12), repeat=2), key=sum)[1:65]  # the 64 lowest frequencies, without the mean
# ImageHash uses the median as threshold instead, and needs SciPy and PyWavelets
RELATIVE_THRESHOLD = 0.25  # threshold as a share of the mean magnitude: symmetric images have many noisy values near 0
MIN_THRESHOLD = 8.0  # magnitude of a coefficient in an image with only noise of a few levels

_GREY = np.array([0.299, 0.587, 0.114])
# np.bitwise_count needs a newer NumPy than the required one
_POPCOUNT = np.array([value.bit_count() for value in range(1 << 16)], np.uint8)


def _cosines() -> np.ndarray:
    """Return the first 12 rows of the orthonormal DCT-II matrix, (12, SIDE)."""
    frequency, position = np.ogrid[:12, :SIDE]
    rows = np.sqrt(2 / SIDE) * np.cos(np.pi * frequency * (2 * position + 1) / (2 * SIDE))
    rows[0] /= np.sqrt(2)
    return rows


_COSINES = _cosines()


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """Compute the hash of an image: a 0-d array of dtype `HASH_DTYPE`."""
    pixels = inference_crop(image, SIDE)
    spectrum = _COSINES @ (pixels @ _GREY) @ _COSINES.T
    magnitudes = np.array([spectrum[position] for position in FREQUENCIES])
    bits = magnitudes > max(RELATIVE_THRESHOLD * np.abs(magnitudes).mean(), MIN_THRESHOLD)
    colours = pixels.reshape(4, SIDE // 4, 4, SIDE // 4, 3).mean(axis=(1, 3))
    entry = np.zeros((), HASH_DTYPE)
    entry["hash"] = np.packbits(bits).view("<u8")[0]
    entry["colours"] = np.rint(colours)
    entry["readable"] = True
    return entry


def hamming_distance(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the Hamming distance of 64-bit hashes: (n) uint64 each, or one of them a scalar -> (n) uint8."""
    words = np.bitwise_xor(hashes, others).reshape(-1, 1).view(np.uint16)
    return _POPCOUNT[words].sum(axis=1, dtype=np.uint8)


def colour_distance(colours: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the largest difference of mean colours: (n, 4, 4, 3) uint8 each, or one single -> (n) in [0, 255]."""
    return np.abs(colours.astype(np.int16) - others.astype(np.int16)).max(axis=(-3, -2, -1))


def perceptual_hashes(source: Source, workers: int = 0) -> np.ndarray:
    """Return the hashes of a source's images, (n) `HASH_DTYPE`, cached on disk. Zeros for unreadable images.

    Images that could not be read are tried again at each call, since the reason may have been a network or a disk.
    """
    cached = read_array(cache_path(source, f"{VERSION}"), (len(source),))
    hashes = np.zeros(len(source), HASH_DTYPE) if cached is None else np.array(cached)
    num_readable = hashes["readable"].sum()
    missing_indices = np.flatnonzero(~hashes["readable"]).tolist()
    for index, result in (
        parallel_map(source, missing_indices, hash_record, workers, "hashing") if missing_indices else ()
    ):
        if not isinstance(result, UnreadableRecord):
            hashes[index] = result
    if cached is None or hashes["readable"].sum() > num_readable:
        cache_hashes(source, hashes)
    return hashes


def cache_path(source: Source, name: str) -> Path:
    """Return the path of the cache `name` of a source's images. Images are read and cropped at `image_size`."""
    return FOLDER / f"{source.digest()}-{source.image_size}-{name}.npy"  # digests of files have no image size


def cache_hashes(source: Source, hashes: np.ndarray) -> None:
    """Cache the hashes of a source on disk. `hashes` has an entry for every record."""
    path = cache_path(source, f"{VERSION}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(temporary, "wb") as file:
        np.save(file, hashes)
    os.replace(temporary, path)


def hash_record(source: Source, index: int) -> np.ndarray:
    """Compute the hash of one record. Raises `UnreadableRecord`."""
    return perceptual_hash(source[index].image)


def read_array(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Memory-map the array in a file. Returns None if there is no file or its shape differs."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return array if array.shape == shape else None
