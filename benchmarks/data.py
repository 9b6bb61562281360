"""Images per second of each data source, of Pillow, of the package webdataset and of memory: benchmarks/data.py."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import synthetic
from benchmarks.interleave import Runner, table, time_interleaved
from benchmarks.machine import processor
from benchmarks.token_reads import token_reads
from dalle.data import open_source
from dalle.data.blocks import BlocksConfig
from dalle.data.coco import CocoConfig
from dalle.data.emoji import EmojiConfig
from dalle.data.folder import FolderConfig
from dalle.data.loader import image_batches
from dalle.data.transforms import get_transform, inference_crop
from dalle.data.webdataset import WebdatasetConfig

IMAGE_SIZE = 256
BATCH = 32
TRANSFORMS = ("none", "transformer")  # transforms that are timed


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(1)
    print(f"{processor()}, one core; images per second of processor time, medians of {options.rounds} rounds")
    results: dict[str, Any] = {"processor": processor(), "pictures": options.pictures, "rounds": options.rounds}
    for name in options.sizes:
        width, height = map(int, name.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            synthetic.write(root, options.pictures, width, height)
            size = sum(path.stat().st_size for path in (root / "folder").glob("*.jpg")) / options.pictures
            runners = [*decoders(root), *loaders(root), *peers(root)]
            rows = time_interleaved(runners, options.rounds, reference=runners[0].name)
        print(f"\n{table(rows, f'JPEGs of {name}, {size / 1000:.0f} kB')}", flush=True)
        results[name] = [asdict(row) for row in rows]
    rendered = time_interleaved([*renderers(options.pictures)], options.rounds, reference=None)
    print(f"\n{table(rendered, 'rendered on access, 64 pixels')}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = token_reads(Path(folder), options.records, options.positions, options.rounds)
    print(f"\n{table(rows, f'tokens, {options.positions:,} per image, {options.records:,} images, batches of 512')}")
    results |= {"rendered": [asdict(row) for row in rendered], "tokens": [asdict(row) for row in rows]}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\nresults  {options.out}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, help="number of files of each size (200)")
    parser.add_argument("--sizes", nargs="+", help="image sizes (512x384 2048x1536)")
    parser.add_argument("--records", type=int, help="records in the token cache (20,000)")
    parser.add_argument("--positions", type=int, default=1_024, help="tokens per image (%(default)s)")
    parser.add_argument("--rounds", type=int, help="rounds of measurements (5)")
    parser.add_argument("--quick", action="store_true", help="a few small images, to check that everything runs")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/data.json"), help="JSON output file")
    options = parser.parse_args(arguments)
    options.pictures = options.pictures or (40 if options.quick else 200)
    options.records = options.records or (1_000 if options.quick else 20_000)
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.sizes = options.sizes or (["64x48"] if options.quick else ["512x384", "2048x1536"])
    return options


def decoders(root: Path) -> list[Runner]:
    """Return runners of Pillow alone on files in memory: at full size, and at the size that `IMAGE_SIZE` needs."""
    files = [path.read_bytes() for path in sorted((root / "folder").glob("*.jpg"))]

    def decode(side: int | None) -> None:
        for data in files:
            image = Image.open(BytesIO(data))
            if side is not None:
                image.draft("RGB", (side, side))
            image.convert("RGB").load()

    return [
        Runner("Pillow: decode", "decoded", len(files), partial(decode, None)),
        Runner("Pillow: decode in draft mode", "decoded", len(files), partial(decode, 2 * IMAGE_SIZE)),
    ]


def loaders(root: Path) -> list[Runner]:
    """Return runners of this project's data sources: records in random order, and batches with each transform."""
    configs = {
        "folder": FolderConfig(path=str(root / "folder"), image_size=IMAGE_SIZE),
        "coco": CocoConfig(path=str(root / "folder"), captions=str(root / "captions.json"), image_size=IMAGE_SIZE),
        "webdataset": WebdatasetConfig(path=str(root / "shards"), image_size=IMAGE_SIZE),
    }
    runners = []
    for name, config in configs.items():
        source = open_source(config, "train")
        order = np.random.default_rng(0).permutation(len(source)).tolist()
        runners.append(Runner(f"{name}: records", "decoded", len(order), partial(read_all, source, order)))
        steps = max(1, len(source) // BATCH)
        for transform in TRANSFORMS:
            work = partial(load, source, transform, steps)
            runners.append(Runner(f"{name}: batches", transform, steps * BATCH, work))
    return runners


def renderers(pictures: int) -> list[Runner]:
    """Return runners of the data sources that draw their images."""
    source = open_source(BlocksConfig(train=pictures), "train")
    steps = max(1, pictures // BATCH)
    runners = [Runner("blocks: batches", "none", steps * BATCH, partial(load, source, "none", steps))]
    try:
        emoji = open_source(EmojiConfig(), "train")
    except ImportError as missing:
        print(f"emoji: {missing}")
        return runners
    # the first round renders the images, later ones open the cached images
    return [*runners, Runner("emoji: batches", "none", steps * BATCH, partial(load, emoji, "none", steps))]


def peers(root: Path) -> list[Runner]:
    """Return runners of the package webdataset on the same shards in sequence, called as in its README."""
    try:
        import webdataset
    except ImportError:
        print("the package webdataset is not installed: to compare with it, pip install webdataset")
        return []
    shards = sorted(str(path) for path in (root / "shards").glob("*.tar"))
    count = len(list((root / "folder").glob("*.jpg")))

    def run(then: Callable[[Image.Image], object]) -> None:
        records = webdataset.WebDataset(shards, shardshuffle=False).decode("pilrgb").to_tuple("jpg", "txt")
        for image, _ in records:
            then(image)

    crop = partial(run, lambda image: inference_crop(image, IMAGE_SIZE))
    return [
        Runner(f"webdataset {webdataset.__version__}: records", "decoded", count, partial(run, lambda image: None)),
        Runner(f"webdataset {webdataset.__version__}: records, cropped", "none", count, crop),
    ]


def read_all(source: Any, order: list[int]) -> None:
    for index in order:
        source[index]


def load(source: Any, transform: str, steps: int) -> None:
    for _ in islice(image_batches(source, get_transform(transform), batch_size=BATCH, seed=0), steps):
        pass


if __name__ == "__main__":
    main()
