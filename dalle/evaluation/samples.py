"""Images sampled for evaluation, cached on disk one by one, so that an interrupted run can be resumed.

    <folder>/<digest>/manifest.jsonl      everything the images depend on, then one line per sampled image
    <folder>/<digest>/000/000123.png      the image for caption 123

Another model, seed or number of candidates has another digest and so its own folder; images are never mixed.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dalle.sampling.pipeline import DALLE
from dalle.sampling.sampling_config import SamplingConfig

MANIFEST = "manifest.jsonl"
SHELF = 1000  # images in a folder


class Samples:
    """One sampled image for each caption."""

    def __init__(self, folder: Path, facts: dict[str, Any]):
        """facts: everything the images depend on beside their captions, as JSON values."""
        written = json.dumps(facts, sort_keys=True)
        self.facts = facts
        self.digest = hashlib.sha256(written.encode()).hexdigest()[:12]
        self.folder = folder / self.digest

    def draw(self, dalle: DALLE, captions: Sequence[str], config: SamplingConfig) -> None:
        """Sample the missing images, one for each caption: the best of its candidates if there are several.

        Caption i uses the candidates from i * config.candidates on, so each caption has its own noise.

        Raises:
            ValueError: the folder has images for other captions.
        """
        drawn = self._known_captions()
        common = min(len(drawn), len(captions))
        if drawn[:common] != list(captions[:common]):
            raise ValueError(
                f"{self.folder} holds pictures for other captions: the data have changed since they were drawn. "
                "Remove the folder to draw anew"
            )
        if len(drawn) >= len(captions):
            return
        numbers = range(len(drawn), len(captions))
        results = dalle.stream(
            captions[len(drawn) :],
            replace(config, keep=1),
            candidate_offset=[number * config.candidates for number in numbers],
            truncate=True,
        )
        bar = tqdm(total=len(captions), initial=len(drawn), unit="picture", disable=not sys.stderr.isatty())
        with bar, open(self.folder / MANIFEST, "a", encoding="utf-8") as manifest:
            for number, result in zip(numbers, results, strict=True):
                path = self._path(number)
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
        for first in range(0, count, batch_size):
            pixels = [self._pixels(number) for number in range(first, min(first + batch_size, count))]
            yield rearrange(torch.from_numpy(np.stack(pixels)), "b h w c -> b c h w")

    def _known_captions(self) -> list[str]:
        """Return the captions with sampled images; create the manifest if there is none."""
        path = self.folder / MANIFEST
        self.folder.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.is_file() else b""
        # drop a line that was cut off by an interruption; the first line holds the facts
        whole = content[: content.rfind(b"\n") + 1] or (json.dumps(self.facts) + "\n").encode()
        if whole != content:
            path.write_bytes(whole)
        return [json.loads(line)["caption"] for line in whole.decode().splitlines()[1:]]

    def _pixels(self, number: int) -> np.ndarray:
        path = self._path(number)
        try:
            with Image.open(path) as opened:
                return np.asarray(opened.convert("RGB"))
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error}): remove {self.folder} to draw anew") from error

    def _path(self, number: int) -> Path:
        return self.folder / f"{number // SHELF:03d}" / f"{number:06d}.png"
