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

from dalle.data.passes import in_order
from dalle.data.source import Source, UnreadableRecord
from dalle.data.transforms import inference_crop

FINGERPRINT = np.dtype([("hash", "<u8"), ("colours", "u1", (4, 4, 3)), ("readable", "?")])
FOLDER = Path("outputs/.fingerprints")  # cache of computed hashes, by the digest of the data
VERSION = 1  # increase it if the hash of the same image changes

NEAR_BITS = 3  # of 64 that may differ between near duplicates: JPEG compression and scaling change no more
NEAR_LEVELS = 24  # of 255 by which any mean colour may differ between near duplicates

SIDE = 32  # pixels per side of the square that is hashed
FREQUENCIES = sorted(product(range(12), repeat=2), key=sum)[1:65]  # the 64 lowest frequencies, without the mean
# ImageHash uses the median as threshold instead, and needs SciPy and PyWavelets
STANDS_OUT = 0.25  # threshold as a share of the mean magnitude: symmetric images have many noisy values near 0
FAINT = 8.0  # magnitude of a coefficient in an image with only noise of a few levels

_GREY = np.array([0.299, 0.587, 0.114])
# np.bitwise_count needs a newer NumPy than the required one
_POPCOUNT = np.array([value.bit_count() for value in range(1 << 16)], np.uint8)


def _cosines() -> np.ndarray:
    """Return the first 12 rows of the orthonormal DCT-II matrix, (12, SIDE)."""
    frequency, place = np.ogrid[:12, :SIDE]
    rows = np.sqrt(2 / SIDE) * np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE))
    rows[0] /= np.sqrt(2)
    return rows


_COSINES = _cosines()


def fingerprint(image: Image.Image) -> np.ndarray:
    """Compute the hash of an image: a 0-d array of dtype `FINGERPRINT`."""
    pixels = inference_crop(image, SIDE)
    spectrum = _COSINES @ (pixels @ _GREY) @ _COSINES.T
    sizes = np.array([spectrum[place] for place in FREQUENCIES])
    bits = sizes > max(STANDS_OUT * np.abs(sizes).mean(), FAINT)
    colours = pixels.reshape(4, SIDE // 4, 4, SIDE // 4, 3).mean(axis=(1, 3))
    print_ = np.zeros((), FINGERPRINT)
    print_["hash"] = np.packbits(bits).view("<u8")[0]
    print_["colours"] = np.rint(colours)
    print_["readable"] = True
    return print_


def differing_bits(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the Hamming distance of 64-bit hashes: (n) uint64 each, or one of them a scalar -> (n) uint8."""
    words = np.bitwise_xor(hashes, others).reshape(-1, 1).view(np.uint16)
    return _POPCOUNT[words].sum(axis=1, dtype=np.uint8)


def differing_levels(colours: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the largest difference of mean colours: (n, 4, 4, 3) uint8 each, or one single -> (n) in [0, 255]."""
    return np.abs(colours.astype(np.int16) - others.astype(np.int16)).max(axis=(-3, -2, -1))


def fingerprints(source: Source, workers: int = 0) -> np.ndarray:
    """Return the hashes of a source's images, (n) `FINGERPRINT`, cached on disk. Zeros for unreadable images."""
    path = FOLDER / f"{source.digest()}-{VERSION}.npy"
    kept = read_rows(path, (len(source),))
    if kept is not None:
        return kept
    prints = np.zeros(len(source), FINGERPRINT)
    for index, found in in_order(source, range(len(source)), read_fingerprint, workers, "fingerprints"):
        if not isinstance(found, UnreadableRecord):
            prints[index] = found
    keep_fingerprints(source, prints)
    return prints


def keep_fingerprints(source: Source, prints: np.ndarray) -> None:
    """Cache the hashes of a source on disk. `prints` has an entry for every record."""
    path = FOLDER / f"{source.digest()}-{VERSION}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(beside, "wb") as file:
        np.save(file, prints)
    os.replace(beside, path)


def read_fingerprint(source: Source, index: int) -> np.ndarray:
    """Compute the hash of one record. Raises `UnreadableRecord`."""
    return fingerprint(source[index].image)


def read_rows(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Memory-map the array in a file. Returns None if there is no file or its shape differs."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return rows if rows.shape == shape else None
