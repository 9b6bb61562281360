"""Images sampled for evaluation, cached on disk one by one, so that an interrupted run can be resumed.

    <folder>/<digest>/manifest.jsonl      everything the images depend on, then one line per sampled image
    <folder>/<digest>/000/000123.png      the image for caption 123

Another model, seed or number of candidates has another digest and so its own folder; images are never mixed.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from dalle.progress import progress_bar
from dalle.sampling.pipeline import DALLE
from dalle.sampling.sampling_config import SamplingConfig

MANIFEST = "manifest.jsonl"
IMAGES_PER_FOLDER = 1000


class SampleCache:
    """Disk cache of one sampled image for each caption."""

    def __init__(self, folder: Path, settings: dict[str, Any]):
        """Refer to the cache in a sub-folder of `folder` named after the digest of `settings`. Creates nothing.

        settings: everything the images depend on beside their captions, as JSON values.
        """
        self.settings = settings
        self.digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = folder / self.digest

    def sample_missing(self, dalle: DALLE, captions: Sequence[str], config: SamplingConfig) -> None:
        """Sample the missing images, one for each caption: the best of its candidates if there are several.

        Caption i uses the candidates from i * config.candidates on, so each caption has its own noise.

        Raises:
            ValueError: the folder has images for other captions.
        """
        cached_captions = self._cached_captions()
        num_common = min(len(cached_captions), len(captions))
        if cached_captions[:num_common] != list(captions[:num_common]):
            raise ValueError(
                f"{self.folder} has images for other captions: the data have changed since they were sampled. "
                "Remove the folder to sample again"
            )
        if len(cached_captions) >= len(captions):
            return
        indices = range(len(cached_captions), len(captions))
        results = dalle.stream(
            captions[len(cached_captions) :],
            replace(config, keep=1),
            candidate_offset=[index * config.candidates for index in indices],
            truncate=True,
            progress=False,
        )
        bar = progress_bar(len(captions), "sampling", initial=len(cached_captions))
        with bar, open(self.folder / MANIFEST, "a", encoding="utf-8") as manifest:
            for index, result in zip(indices, results, strict=True):
                path = self._path(index)
                path.parent.mkdir(exist_ok=True)
                result.images[0].save(path)
                score = None if result.scores is None else result.scores[0]
                line = {"caption": result.caption, "candidate": result.candidates[0], "score": score}
                # after the image: a line in the manifest means that its image is complete
                manifest.write(json.dumps(line, ensure_ascii=False) + "\n")
                manifest.flush()
                bar.update()

    def batches(self, count: int, batch_size: int = 64) -> Iterator[Tensor]:
        """Yield the first `count` images in batches (b, 3, h, w) uint8. Raises ValueError for an unreadable one."""
        for start in range(0, count, batch_size):
            pixels = [self._pixels(index) for index in range(start, min(start + batch_size, count))]
            yield rearrange(torch.from_numpy(np.stack(pixels)), "b h w c -> b c h w")

    def _cached_captions(self) -> list[str]:
        """Return the captions with cached images, in order; create the file `MANIFEST` if there is none."""
        path = self.folder / MANIFEST
        self.folder.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.is_file() else b""
        # drop a line that was truncated by an interruption; the first line has the settings
        complete_lines = content[: content.rfind(b"\n") + 1] or (json.dumps(self.settings) + "\n").encode()
        if complete_lines != content:
            path.write_bytes(complete_lines)
        return [json.loads(line)["caption"] for line in complete_lines.decode().splitlines()[1:]]

    def _pixels(self, index: int) -> np.ndarray:
        path = self._path(index)
        try:
            with Image.open(path) as opened:
                return np.asarray(opened.convert("RGB"))
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error}): remove {self.folder} to sample again") from error

    def _path(self, index: int) -> Path:
        return self.folder / f"{index // IMAGES_PER_FOLDER:03d}" / f"{index:06d}.png"
