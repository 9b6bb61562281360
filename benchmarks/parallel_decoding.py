"""Tokens per pass and speed of parallel decoding, for each source of guesses, compared with sequential decoding.

Prints a table and writes a JSON, and with --plot a plot of the tokens per pass of each model. All cases take turns.
Speeds are of processor time, so other load changes them little.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.compare import lower_bound, machine_rates
from benchmarks.decoding_differences import find_differences
from benchmarks.machine import decoding_work
from benchmarks.tokens_per_pass_plot import plot_tokens_per_pass
from dalle import checkpoint
from dalle.data import captioned_only, config_from_dict, open_source
from dalle.evaluation.metrics.caption_samples import first_captions
from dalle.evaluation.plots import check_matplotlib
from dalle.models.transformer.model import Transformer, TransformerConfig
from dalle.sampling.decode import sample_all_tokens
from dalle.sampling.parallel_decode import DecodingCount
from dalle.sampling.pipeline import DALLE
from dalle.sampling.sampling_config import GUESS_NAMES, DecodingConfig, SamplingConfig

DRAWINGS_CAPTIONS = [
    *("a red apple, 3D render", "a green umbrella", "a cat, line drawing", "two houses"),
    *("a yellow star", "a blue bird", "a smiling face", "a black arrow, icon"),
]
UNTRAINED = "untrained"  # value of --checkpoints


@dataclass(frozen=True)
class Row:
    """Measurement of one setting: `images` images, `batch` at a time."""

    model: str
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
    share_of_roofline: float  # share of the images per second at the machine's limit for these passes


def measure(
    name: str, model: Transformer, captions: Tensor, cases: list[DecodingConfig], images: int, precision: str
) -> list[Row]:
    """Sample `images` images of each caption with each case in turn; the first is sequential decoding.

    Batches hold several captions if there are fewer images of each, as in `dalle.sampling.decode`. The machine's rates
    are measured before each batch.
    """
    dtype, batch = getattr(torch, precision), cases[0].batch_size or images
    counts, seconds, equal = [DecodingCount() for _ in cases], [0.0] * len(cases), [0] * len(cases)
    ties, differences = [0] * len(cases), [0] * len(cases)
    rates: list[tuple[float, float]] = []
    at_once = (min(batch, len(captions) * images), min(len(captions), max(1, batch // images)))  # images, captions
    bytes_per_pass = decoding_work_of(model.config, cases[0], *at_once, precision)[0] // model.config.grid**2
    for case in cases:  # unmeasured: caches are allocated and weights packed for the first time
        sample_all_tokens(model, captions[:1], 1, case, precision=dtype)
    for group in captions.split(max(1, batch // images)):
        expected = None
        rates.append(machine_rates(bytes_per_pass, precision, time.process_time))
        for number, case in enumerate(cases):
            begin = time.process_time()
            sampled = sample_all_tokens(model, group, images, case, precision=dtype, count=counts[number])
            seconds[number] += time.process_time() - begin
            expected = sampled if expected is None else expected
            equal[number] += int((sampled == expected).flatten(2).all(-1).sum())
            for caption, *pair in zip(group.split(1), expected, sampled, strict=True):
                found = find_differences(model, caption, case, *pair, precision=dtype)
                ties[number] += sum(difference.is_tie for difference in found)
                differences[number] += sum(not difference.is_tie for difference in found)
    total = len(captions) * images
    reading, products = (statistics.median(values) for values in zip(*rates, strict=True))
    limits = [
        lower_bound(
            decoding_work_of(model.config, case, *at_once, precision, count.tokens_per_pass), (reading, products)
        )
        for case, count in zip(cases, counts, strict=True)
    ]
    return [
        Row(
            name,
            precision,
            batch,
            case.guess if case.decoding == "parallel" else "sequential",
            (case.window or 0) if case.decoding == "parallel" else 1,
            total,
            counts[number].tokens_per_pass,
            total / seconds[number],
            seconds[0] / seconds[number],
            equal[number] / total,
            ties[number],
            differences[number],
            limits[number] / at_once[0] * total / seconds[number],
        )
        for number, case in enumerate(cases)
    ]


def decoding_work_of(
    config: TransformerConfig,
    case: DecodingConfig,
    images: int,
    captions: int,
    precision: str,
    tokens_per_pass: float = 1.0,
) -> tuple[int, int]:
    """Return the bytes to read and the operations to compute for a batch of images of several captions.

    Guidance decodes each image twice, the second time with the empty caption, whose keys and values all images share.
    """
    if case.guided:
        images, captions = 2 * images, captions + 1
    window = (case.window or 1) if case.decoding == "parallel" else 1
    return decoding_work(config, images, precision, captions=captions, tokens_per_pass=tokens_per_pass, window=window)


def untrained(image_vocabulary: int, grid: int) -> Transformer:
    """Build a model whose random output head makes all logits differ; a new model's are all 0."""
    torch.manual_seed(0)
    config = TransformerConfig(32, 64, image_vocabulary, grid, width=64, depth=2, heads=2, patterns=["row"])
    model = Transformer(config).eval()
    torch.nn.init.normal_(model.image_head.weight, std=0.2)
    return model


def load(name: str, options: argparse.Namespace) -> tuple[str, Transformer, Tensor, DecodingConfig]:
    """Return a model's name for the table, the model, caption tokens that fit it, and its sampling settings.

    Raises:
        ValueError: there are no captions for the model, or too few.
    """
    if name == UNTRAINED:
        model = untrained(64, 4) if options.quick else untrained(8192, 16)
        ids = model.sequence.pad_captions([[number + 1] for number in range(options.captions)])
        return f"untrained, {model.config.image_vocabulary:,} codes", model, ids, DecodingConfig(guidance=1.0)
    dalle = DALLE.load(name)
    captions = find_captions(dalle.folders["transformer"], options.captions_file, options.captions)
    return name, dalle.transformer, dalle.tokenize(captions), dalle.resolve(SamplingConfig())


def find_captions(transformer: Path, file: Path | None, count: int) -> list[str]:
    """Return the first `count` captions for a model: those of `file`, or held-out ones of its training data.

    The drawings need not be on this machine, so a model of drawings has captions of its own.

    Raises:
        ValueError: the checkpoint does not record its data, or there are too few captions.
    """
    _, meta = checkpoint.read_config(transformer, "transformer")
    if file is not None:
        captions = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    elif "data" not in meta:
        raise ValueError(f"{transformer} does not record its training data: give captions with --captions-file")
    elif meta["data"]["name"] == "drawings":
        captions = DRAWINGS_CAPTIONS
    else:
        captions = first_captions(open_source(captioned_only(config_from_dict(meta["data"])), "val"), count)
    if len(captions) < count:
        raise ValueError(f"--captions {count}: there are {len(captions)} for {transformer}; give --captions-file")
    return captions[:count]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--checkpoints", nargs="+", help=f"checkpoints, and {UNTRAINED}: a random model of 8,192 codes (drawings)"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--precisions", nargs="+", default=["float32"])
    parser.add_argument("--guesses", nargs="+", default=GUESS_NAMES, choices=GUESS_NAMES)
    parser.add_argument("--captions", type=int, default=8, help="number of captions (%(default)s)")
    parser.add_argument("--captions-file", type=Path, help="captions, one a line (held-out ones of the model's data)")
    parser.add_argument("--candidates", type=int, default=1, help="images of each caption")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/parallel_decoding.json"))
    parser.add_argument("--plot", type=Path, help="PNG of tokens per pass; needs matplotlib")
    parser.add_argument("--quick", action="store_true", help="a tiny untrained model, seconds: a test of the script")
    options = parser.parse_args(arguments)
    if options.captions < 1:
        parser.error(f"--captions {options.captions} must be at least 1")
    options.checkpoints = options.checkpoints or [UNTRAINED if options.quick else "drawings"]
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.plot:
        check_matplotlib()
    torch.set_num_threads(options.threads)
    models = [load(name, options) for name in options.checkpoints]

    rows: list[Row] = []
    columns = ("precision, batch", "decoding, window", "tokens per pass", "images/s", "times sequential", "same images")
    print("| model |", " | ".join(columns), "| ties, other differences | share of roofline |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, model, ids, sampling in models:
        for precision in options.precisions:
            for batch in options.batches:
                config = replace(sampling, batch_size=batch, decoding="sequential")
                cases = [config] + [
                    replace(config, decoding="parallel", guess=guess, window=window)
                    for guess in options.guesses
                    for window in options.windows
                ]
                measured = measure(name, model, ids, cases, options.candidates, precision)
                print("\n".join(table_line(row) for row in measured), flush=True)
                rows += measured
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    if options.plot:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        plot_tokens_per_pass([asdict(row) for row in rows]).save(options.plot)


def table_line(row: Row) -> str:
    return (
        f"| {row.model} | {row.precision}, {row.batch} | {row.decoding}, {row.window} | {row.tokens_per_pass:.2f} "
        f"| {row.images_per_second:.2f} | {row.times_sequential:.2f} | {row.equal_images:.0%} "
        f"| {row.ties}, {row.differences} | {row.share_of_roofline:.0%} |"
    )


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
