"""Tokens per pass and speed of parallel decoding, for each source of guesses, compared with sequential decoding.

Prints a table and writes a JSON. All cases take turns. Speeds are of processor time, so other load changes them little.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.decoding_differences import find_differences
from dalle.models.transformer.model import Transformer, TransformerConfig
from dalle.sampling.decode import generate
from dalle.sampling.parallel_decode import DecodingCount
from dalle.sampling.pipeline import DALLE
from dalle.sampling.sampling_config import GUESS_NAMES, DecodingConfig, SamplingConfig

CAPTIONS = [
    *("a red apple, 3D render", "a green umbrella", "a cat, line drawing", "two houses"),
    *("a yellow star", "a blue bird", "a smiling face", "a black arrow, icon"),
]


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
    ties: int  # images that differ since two tokens are as close as rounding, see `benchmarks.decoding_differences`
    differences: int  # images that differ otherwise: in float32 an error


def measure(
    model: Transformer, captions: Tensor, cases: list[DecodingConfig], images: int, precision: str
) -> list[Row]:
    """Sample `images` images of each caption with each case in turn; the first is sequential decoding.

    Batches hold several captions if there are fewer images of each, as in `dalle.sampling.decode`.
    """
    dtype, batch = getattr(torch, precision), cases[0].batch_size or images
    counts, seconds, equal = [DecodingCount() for _ in cases], [0.0] * len(cases), [0] * len(cases)
    ties, differences = [0] * len(cases), [0] * len(cases)
    for case in cases:  # unmeasured: caches are allocated and weights packed for the first time
        generate(model, captions[:1], 1, case, precision=dtype)
    for group in captions.split(max(1, batch // images)):
        expected = None
        for number, case in enumerate(cases):
            begin = time.process_time()
            sampled = generate(model, group, images, case, precision=dtype, count=counts[number])
            seconds[number] += time.process_time() - begin
            expected = sampled if expected is None else expected
            equal[number] += int((sampled == expected).flatten(2).all(-1).sum())
            for caption, *pair in zip(group.split(1), expected, sampled, strict=True):
                found = find_differences(model, caption, case, *pair, precision=dtype)
                ties[number] += sum(each.is_tie for each in found)
                differences[number] += sum(not each.is_tie for each in found)
    total = len(captions) * images
    return [
        Row(
            precision,
            batch,
            case.guess if case.decoding == "parallel" else "sequential",
            (case.window or 0) if case.decoding == "parallel" else 1,
            total,
            counts[number].tokens_per_pass if case.decoding == "parallel" else 1.0,
            total / seconds[number],
            seconds[0] / seconds[number],
            equal[number] / total,
            ties[number],
            differences[number],
        )
        for number, case in enumerate(cases)
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
    parser.add_argument("--guesses", nargs="+", default=GUESS_NAMES, choices=GUESS_NAMES)
    parser.add_argument("--captions", type=int, default=len(CAPTIONS))
    parser.add_argument("--candidates", type=int, default=1, help="images of each caption")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/parallel_decoding.json"))
    parser.add_argument("--quick", action="store_true", help="a tiny model, seconds: a test of the script")
    arguments = parser.parse_args()
    if not 1 <= arguments.captions <= len(CAPTIONS):
        parser.error(f"--captions {arguments.captions} must be 1 to {len(CAPTIONS)}")

    torch.set_num_threads(arguments.threads)
    sampling = DecodingConfig(guidance=1.0)
    if arguments.quick or arguments.checkpoint == "untrained":
        model = untrained(64, 4) if arguments.quick else untrained(8192, 16)
        ids = model.sequence.pad_captions([[number + 1] for number in range(arguments.captions)])
    else:
        dalle = DALLE.load(arguments.checkpoint)
        model, ids = dalle.transformer, dalle.tokenize(CAPTIONS[: arguments.captions])
        sampling = dalle.resolve(SamplingConfig())
    rows: list[Row] = []
    columns = ("precision, batch", "decoding, window", "tokens per pass", "images/s", "times sequential", "same images")
    print("|", " | ".join(columns), "| ties, other differences |")
    print("|---|---|---|---|---|---|---|")
    for precision in arguments.precisions:
        for batch in arguments.batches:
            config = replace(sampling, batch_size=batch, decoding="sequential")
            cases = [config] + [
                replace(config, decoding="parallel", guess=guess, window=window)
                for guess in arguments.guesses
                for window in arguments.windows
            ]
            for row in measure(model, ids, cases, arguments.candidates, precision):
                rows.append(row)
                print(
                    f"| {row.precision}, {row.batch} | {row.decoding}, {row.window} | {row.tokens_per_pass:.2f} "
                    f"| {row.images_per_second:.2f} | {row.times_sequential:.2f} | {row.equal_images:.0%} "
                    f"| {row.ties}, {row.differences} |",
                    flush=True,
                )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
