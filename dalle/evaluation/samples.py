"""Pictures drawn to be measured, kept on disk as they come: stopped and run again, the drawing goes on.

    <folder>/<digest>/manifest.jsonl      all that decides the pictures, then a line for each that is drawn
    <folder>/<digest>/000/000123.png      the picture for caption 123

Another model, seed or number of candidates has another digest and so a folder of its own; nothing is ever mixed.
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
SHELF = 1000  # pictures in a folder


class Samples:
    """One picture for each caption."""

    def __init__(self, folder: Path, facts: dict[str, Any]):
        """facts: everything that decides the pictures beside their captions, as JSON can hold it."""
        written = json.dumps(facts, sort_keys=True)
        self.facts = facts
        self.digest = hashlib.sha256(written.encode()).hexdigest()[:12]
        self.folder = folder / self.digest

    def draw(self, dalle: DALLE, captions: Sequence[str], config: SamplingConfig) -> None:
        """Draw what is still missing of a picture for each caption: the best of its candidates, if they are several.

        Caption i gets the candidates from i * config.candidates on, so that each has noise of its own. Raises
        ValueError where pictures were drawn for other captions.
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
            first=[number * config.candidates for number in numbers],
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
                # after the picture, which a line that stands vouches for
                manifest.write(json.dumps(line, ensure_ascii=False) + "\n")
                manifest.flush()
                bar.update()

    def batches(self, count: int, batch_size: int = 64) -> Iterator[Tensor]:
        """The first `count` pictures: (b, 3, h, w) uint8 at a time. Raises ValueError for one that cannot be read."""
        for first in range(0, count, batch_size):
            pixels = [self._pixels(number) for number in range(first, min(first + batch_size, count))]
            yield rearrange(torch.from_numpy(np.stack(pixels)), "b h w c -> b c h w")

    def _known_captions(self) -> list[str]:
        """Those that pictures were drawn for; begins the manifest where there is none."""
        path = self.folder / MANIFEST
        self.folder.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.is_file() else b""
        # where it was killed while it wrote a line, that line goes; the first one tells the facts
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
