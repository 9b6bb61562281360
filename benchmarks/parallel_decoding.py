"""Tokens per pass and speed of parallel decoding, for each source of guesses, compared with sequential decoding.

Prints a table and writes a JSON. All cases take turns. Speeds are of processor time, so other load changes them little.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from dalle.models.transformer.model import Transformer, TransformerConfig
from dalle.sampling.decode import generate
from dalle.sampling.parallel_decode import DecodingCount
from dalle.sampling.pipeline import DALLE
from dalle.sampling.sampling_config import GUESS_NAMES, DecodingConfig

CAPTIONS = ["a red apple, 3D render", "a green umbrella", "a cat, line drawing", "two houses"]


@dataclass(frozen=True)
class Row:
    """Measurement of one setting: `images` images of `captions` captions, `batch` at a time."""

    precision: str
    batch: int
    decoding: str  # sequential, or the source of guesses
    window: int
    images: int
    tokens_per_pass: float
    images_per_second: float  # per second of processor time
    times_sequential: float
    equal_images: float  # share of images that are those of sequential decoding


def measure(
    model: Transformer, captions: Tensor, config: DecodingConfig, candidates: int, precision: str, windows: list[int]
) -> list[Row]:
    """Sample with sequential decoding and with each source of guesses and window, caption by caption in turn."""
    cases = [config] + [
        DecodingConfig(**{**vars(config), "decoding": "parallel", "guess": guess, "window": window})
        for guess in GUESS_NAMES
        for window in windows
    ]
    counts, seconds, equal = [DecodingCount() for _ in cases], [0.0] * len(cases), [0] * len(cases)
    for caption in captions.split(1):
        expected = None
        for number, case in enumerate(cases):
            begin = time.process_time()
            images = generate(
                model, caption, candidates, case, precision=getattr(torch, precision), count=counts[number]
            )
            seconds[number] += time.process_time() - begin
            expected = images if expected is None else expected
            equal[number] += int((images == expected).flatten(2).all(-1).sum())
    images_in_all = len(captions) * candidates
    return [
        Row(
            precision,
            config.batch_size or candidates,
            case.guess if case.decoding == "parallel" else "sequential",
            case.window if case.decoding == "parallel" else 1,
            images_in_all,
            count.tokens_per_pass if case.decoding == "parallel" else 1.0,
            images_in_all / used,
            seconds[0] / used,
            same / images_in_all,
        )
        for case, count, used, same in zip(cases, counts, seconds, equal, strict=True)
    ]


def untrained(image_vocabulary: int, grid: int) -> Transformer:
    """Build a model whose random output head makes all logits differ; a new model's are all 0."""
    torch.manual_seed(0)
    config = TransformerConfig(32, 64, image_vocabulary, grid, width=64, depth=2, heads=2, patterns=["row"])
    model = Transformer(config).eval()
    torch.nn.init.normal_(model.image_head.weight, std=0.2)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="drawings", help="a checkpoint, or untrained: 8,192 codes")
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--precisions", nargs="+", default=["float32"])
    parser.add_argument("--captions", type=int, default=len(CAPTIONS))
    parser.add_argument("--candidates", type=int, default=4, help="images for each caption, at least one batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/parallel_decoding.json"))
    parser.add_argument("--quick", action="store_true", help="a tiny model, seconds: a test of the script")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    guidance = 1.0
    if arguments.quick or arguments.checkpoint == "untrained":
        model = untrained(64, 4) if arguments.quick else untrained(8192, 16)
        ids = model.sequence.pad_captions([[number + 1] for number in range(arguments.captions)])
    else:
        dalle = DALLE.load(arguments.checkpoint)
        model, ids, guidance = dalle.transformer, dalle.tokenize(CAPTIONS[: arguments.captions]), dalle.guidance
    rows: list[Row] = []
    print("| precision, batch | decoding, window | tokens per pass | images/s | times sequential | same images |")
    print("|---|---|---|---|---|---|")
    for precision in arguments.precisions:
        for batch in arguments.batches:
            config = DecodingConfig(guidance=guidance, batch_size=batch)
            candidates = max(batch, arguments.candidates)
            for row in measure(model, ids, config, candidates, precision, arguments.windows):
                rows.append(row)
                print(
                    f"| {row.precision}, {row.batch} | {row.decoding}, {row.window} | {row.tokens_per_pass:.2f} "
                    f"| {row.images_per_second:.2f} | {row.times_sequential:.2f} | {row.equal_images:.0%} |",
                    flush=True,
                )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
