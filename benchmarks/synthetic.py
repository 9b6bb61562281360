"""Synthetic captioned photographs, in three formats: a folder of JPEGs, COCO's JSON, and tar shards."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

SHARD = 100  # records per tar


def photograph(number: int, width: int, height: int) -> bytes:
    """Return a JPEG of smooth random colours with noise, with about as many bytes per pixel as a photograph."""
    generator = np.random.default_rng(number)
    clouds = generator.integers(256, size=(height // 32 + 2, width // 32 + 2, 3), dtype=np.uint8)
    picture = Image.fromarray(clouds).resize((width, height), Image.Resampling.BICUBIC)
    grain = generator.normal(0, 6, (height, width, 1))
    pixels = (np.asarray(picture) + grain).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return file.getvalue()


def write(root: Path, count: int, width: int, height: int) -> None:
    """Write `count` captioned images of width x height pixels to root/folder, root/captions.json and root/shards."""
    (root / "folder").mkdir(parents=True)
    (root / "shards").mkdir()
    images, annotations = [], []
    for first in range(0, count, SHARD):
        with tarfile.open(root / "shards" / f"{first // SHARD:05d}.tar", "w") as shard:
            for number in range(first, min(first + SHARD, count)):
                caption = f"a photograph of clouds, number {number}"
                for suffix, content in [("jpg", photograph(number, width, height)), ("txt", caption.encode())]:
                    name = f"{number:09d}.{suffix}"
                    (root / "folder" / name).write_bytes(content)
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
                images.append({"id": number, "file_name": f"{number:09d}.jpg"})
                annotations.append({"image_id": number, "id": number, "caption": caption})
    annotated = {"images": images, "annotations": annotations}
    (root / "captions.json").write_text(json.dumps(annotated), encoding="utf-8")
