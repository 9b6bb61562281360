"""CPU sampling speed, compared with other decoders and the machine's limit: python benchmarks/sampling.py."""

import argparse
import json
import sys
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.attention import AttentionTime, attention_times
from benchmarks.breakdown import breakdown_table, step_breakdown
from benchmarks.compare import Decoder, DecoderResult, Roofline, compare
from benchmarks.machine import processor
from benchmarks.peers import PEERS, available
from dalle.models.transformer.model import Transformer, TransformerConfig
from dalle.sampling.decode import MASKED, sample_all_tokens
from dalle.sampling.sampling_config import DecodingConfig

SIZES = TransformerConfig(
    text_positions=64,
    text_vocabulary=4096,
    image_vocabulary=1024,
    grid=16,
    width=512,
    depth=8,
    heads=8,
    patterns=["dense"],  # as in the peers
)
LONG_SIZES = replace(SIZES, text_positions=256, grid=32)  # the paper's 1,280 positions, to compare caches
QUICK_SIZES = TransformerConfig(
    text_positions=8, text_vocabulary=64, image_vocabulary=32, grid=4, width=64, depth=2, heads=2, patterns=["dense"]
)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    config, long = (QUICK_SIZES, QUICK_SIZES) if options.quick else (SIZES, LONG_SIZES)
    peers, unavailable = available(options.peers, config)
    for name, reason in unavailable.items():
        print(f"{name}: {reason}")

    rows: list[DecoderResult] = []
    rooflines: dict[int, Roofline] = {}
    for batch in options.batches:
        results, rooflines[batch] = compare([*ours(config), *peers], config, batch, options.rounds)
        print(f"\n{table(results, rooflines[batch], config)}", flush=True)
        rows += results
    model = Transformer(config).eval()
    parts = {
        (batch, precision): step_breakdown(model, batch, precision, options.rounds)
        for batch in options.batches
        for precision in ("float32", "bfloat16")
    }
    print(f"\n{breakdown_table(parts)}", flush=True)
    attention = attention_times(long, options.attention_batch, options.rounds)
    print(f"\n{attention_table(attention, long, options.attention_batch)}")

    content = {
        "sizes": asdict(config),
        "processor": processor(),
        "threads": options.threads,
        "rounds": options.rounds,
        "versions": {name: version_of(name) for name in ("torch", "transformers", "dalle-pytorch")},
        "decoders": [asdict(row) for row in rows],
        "rooflines": rooflines,
        "unavailable": unavailable,
        "breakdown": [{"batch": batch, "precision": name, **asdict(row)} for (batch, name), row in parts.items()],
        "attention": [asdict(row) for row in attention],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=2) + "\n")
    print(f"\nresults  {options.out}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", help="batch sizes (1 4 16 64 512)")
    parser.add_argument("--rounds", type=int, help="rounds of measurements (3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch (%(default)s)")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS), help="decoders to compare with")
    parser.add_argument("--attention-batch", type=int, default=16, help="batch size for attention times (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny models, to check that everything runs")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/sampling.json"), help="JSON output file")
    options = parser.parse_args(arguments)
    options.batches = options.batches or ([1, 2] if options.quick else [1, 4, 16, 64, 512])
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def ours(config: TransformerConfig) -> list[Decoder]:
    """Return this project's decoders in both precisions, and with the paper's attention patterns."""
    dense = Transformer(config).eval()
    paper = Transformer(replace(config, patterns=["paper"])).eval()
    return [
        _ours("this project", dense, "float32"),
        _ours("this project", dense, "bfloat16"),
        _ours("this project, the paper's patterns", paper, "float32"),
        _ours("this project, the paper's patterns", paper, "bfloat16"),
    ]


def _ours(name: str, model: Transformer, precision: str) -> Decoder:
    sequence = model.sequence
    caption = sequence.pad_captions([[1] * sequence.caption_limit])

    def decode(images: int, tokens: int) -> None:
        canvas = torch.zeros(sequence.image_positions, dtype=torch.int64)
        canvas[:tokens] = MASKED  # decoding stops after the last masked token
        canvas = canvas.view(sequence.grid, sequence.grid)
        config = DecodingConfig(batch_size=images)
        sample_all_tokens(model, caption, images, config, canvas=canvas, precision=getattr(torch, precision))

    return Decoder(name, precision, model, decode, ours=True, dense=set(model.pattern_names) == {"dense"})


def table(rows: list[DecoderResult], roofline: Roofline, config: TransformerConfig) -> str:
    """Return the results of one batch size as a Markdown table."""
    peers = [[row.images_per_second for row in rows if not row.ours and row.precision == name] for name in roofline]
    best = [max(speeds, default=None) for speeds in peers]
    lines = [
        f"| batch {rows[0].batch} | precision | images/s | times best peer fp32, bf16 | share of roofline | memory |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = ", ".join("-" if peer is None else f"{row.images_per_second / peer:.2f}" for peer in best)
        all_tokens = row.tokens_timed == config.grid**2
        speed = f"{row.images_per_second:.3g}" + ("" if all_tokens else f" (from {row.tokens_timed} tokens)")
        memory = "" if row.memory_bytes is None else f"{row.memory_bytes / 2**20:,.0f} MiB"
        share = "" if row.share_of_roofline is None else f"{row.share_of_roofline:.0%}"
        lines.append(f"| {row.name} | {row.precision} | {speed} | {ratios} | {share} | {memory} |")
    lines += [f"| roofline of this machine | {name} | {speed:.3g} | | | |" for name, speed in roofline.items()]
    return "\n".join(lines)


def attention_table(rows: list[AttentionTime], config: TransformerConfig, batch: int) -> str:
    """Return the attention times and cache sizes of the patterns as a Markdown table."""
    lines = [
        f"| attention, {config.text_positions} + {config.grid**2} positions, batch {batch} | ms/token | times dense "
        "| cache of a candidate |",
        "|---|---|---|---|",
    ]
    for row in rows:
        cache = f"{row.cache_bytes / 2**20:.2f} MiB"
        lines.append(f"| {row.pattern} | {row.milliseconds:.3g} | {row.times_dense:.2f} | {cache} |")
    return "\n".join(lines)


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
