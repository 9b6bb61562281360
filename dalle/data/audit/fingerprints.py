"""A picture in 57 bytes, by which copies of another size, quality or file type are recognised.

What counts is the middle square, which is what models are given. Sixty-four bits say which of its lowest
frequencies stand out (a perceptual hash, as pHash's: Zauner 2010), and sixteen mean colours tell apart what differs
in colour alone. Mirrored, turned or strongly cropped copies have other fingerprints.
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
FOLDER = Path("outputs/.fingerprints")  # what was computed before, by the digest of the data
VERSION = 1  # to be raised when fingerprints of the same picture change

NEAR_BITS = 3  # of 64 that may differ between near copies: JPEG's losses and scaling change no more
NEAR_LEVELS = 24  # of 255 that any of the mean colours may differ between them

SIDE = 32  # pixels of the square that is looked at
FREQUENCIES = sorted(product(range(12), repeat=2), key=sum)[1:65]  # the lowest, without the mean
# ImageHash compares with the median of the frequencies instead, and needs SciPy and PyWavelets
STANDS_OUT = 0.25  # of the mean size of all frequencies: what is symmetric has many near 0, whose signs are noise
FAINT = 8.0  # a frequency's size in a picture that has nothing but noise of a few levels

_GREY = np.array([0.299, 0.587, 0.114])
# np.bitwise_count is newer than the NumPy asked for
_POPCOUNT = np.array([value.bit_count() for value in range(1 << 16)], np.uint8)


def _cosines() -> np.ndarray:
    """(12, SIDE): the rows of the orthonormal DCT-II that are needed."""
    frequency, place = np.ogrid[:12, :SIDE]
    rows = np.sqrt(2 / SIDE) * np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE))
    rows[0] /= np.sqrt(2)
    return rows


_COSINES = _cosines()


def fingerprint(image: Image.Image) -> np.ndarray:
    """The picture's `FINGERPRINT`, an array without axes."""
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
    """How many of the 64 bits differ: two of (n) uint64, or one of them a single one -> (n) uint8."""
    words = np.bitwise_xor(hashes, others).reshape(-1, 1).view(np.uint16)
    return _POPCOUNT[words].sum(axis=1, dtype=np.uint8)


def differing_levels(colours: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The largest difference of any mean colour: two of (n, 4, 4, 3) uint8, or one single -> (n) in [0, 255]."""
    return np.abs(colours.astype(np.int16) - others.astype(np.int16)).max(axis=(-3, -2, -1))


def fingerprints(source: Source, workers: int = 0) -> np.ndarray:
    """(n) `FINGERPRINT` of a source's pictures, computed once and kept on disk; zeros where one cannot be read."""
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
    """For the next to ask for them; `prints` are those of all records."""
    path = FOLDER / f"{source.digest()}-{VERSION}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(beside, "wb") as file:
        np.save(file, prints)
    os.replace(beside, path)


def read_fingerprint(source: Source, index: int) -> np.ndarray:
    """That of one record; `UnreadableRecord` where it has none."""
    return fingerprint(source[index].image)


def read_rows(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """What is kept in a file, mapped into memory; None where there is none of this shape."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return rows if rows.shape == shape else None
