"""CLIP features of a data set's images, for nearest-neighbour search. Cached on disk."""

import os
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image

from dalle.data.audit.perceptual_hash import cache_path, read_array
from dalle.data.parallel_map import parallel_map
from dalle.data.source import Source, UnreadableRecord
from dalle.data.transforms import inference_crop
from dalle.models.clip.model import CLIP

CLIP_BATCH_SIZE = 64  # images that CLIP encodes at a time


def clip_features(source: Source, clip: CLIP, digest: str, workers: int = 0) -> np.ndarray:
    """Compute CLIP features of a source's images: (n, embedding) float16 unit vectors, 0 if unreadable. Cached on disk.

    digest: digest of the CLIP checkpoint. Images are cropped as for training. If an image that could not be read can be
    read now, the features are computed anew.
    """
    shape = (len(source), clip.config.embedding)
    path = cache_path(source, f"clip-{digest}")
    crop = partial(_crop, size=source.image_size)
    if (cached := read_array(path, shape)) is not None:
        missing = np.flatnonzero(~cached.any(axis=1)).tolist()
        again = parallel_map(source, missing, crop, workers, "CLIP") if missing else ()
        if all(isinstance(square, UnreadableRecord) for _, square in again):
            return cached
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    features = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
    pending: list[tuple[int, np.ndarray]] = []
    try:
        for index, square in parallel_map(source, range(len(source)), crop, workers, "CLIP"):
            if not isinstance(square, UnreadableRecord):
                pending.append((index, square))
            if pending and (len(pending) == CLIP_BATCH_SIZE or index == len(source) - 1):
                rows, squares = zip(*pending, strict=True)
                features[list(rows)] = encode_squares(clip, squares)
                pending = []
        features.flush()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return features


def _crop(source: Source, index: int, size: int) -> np.ndarray:
    return inference_crop(source[index].image, size)


@torch.inference_mode()
def encode_squares(clip: CLIP, squares: Sequence[np.ndarray]) -> np.ndarray:
    """Encode (size, size, 3) uint8 images with CLIP: (b, embedding) float32 unit vectors."""
    pixels = clip.preprocess([Image.fromarray(square) for square in squares])
    return clip.encode_image(pixels.to(clip.log_scale.device)).float().cpu().numpy()
