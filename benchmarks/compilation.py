"""Training speed of compiled blocks (`stage.compile=true`) relative to eager ones, on this processor."""

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import processor
from benchmarks.precision import dvae, transformer
from dalle.precision import autocast
from dalle.training.compilation import compile_blocks

CPU = torch.device("cpu")
WIDTHS = {"transformer": 256, "dVAE": 32}
QUICK_WIDTHS = {"transformer": 16}


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    print(f"{processor()}, {options.threads} threads, {options.rounds} rounds; processor time of forward and backward")
    print(
        "\n| model | width | precision | eager / compiled (least, most) | seconds to compile |\n|---|---|---|---|---|"
    )
    rows = []
    for kind in QUICK_WIDTHS if options.quick else options.models:
        width = (QUICK_WIDTHS if options.quick else WIDTHS)[kind]
        for precision in ("float32",) if options.quick else ("float32", "bfloat16"):
            ratios, compiling = measure(kind, width, precision, options.rounds)
            row = {"model": kind, "width": width, "precision": precision, "compiling": compiling}
            row |= {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
            rows.append(row)
            spread = f"{row['ratio']:.2f} ({row['least']:.2f} to {row['most']:.2f})"
            print(f"| {kind} | {width} | {precision} | {spread} | {compiling:.0f} |", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"processor": processor(), "rows": rows, "threads": options.threads}) + "\n")
    print(f"\nresults  {options.out}")


def measure(kind: str, width: int, precision: str, rounds: int) -> tuple[list[float], float]:
    """Return eager time / compiled time of each interleaved round of forward and backward, and seconds to compile."""
    model, loss = {"transformer": transformer, "dVAE": dvae}[kind](width)
    forward = model.forward
    compiled = copy.deepcopy(model)
    compile_blocks(compiled, CPU)
    ratios, compiling = [], 0.0
    for round_number in range(rounds + 1):
        seconds = []
        for forward_pass in (forward, compiled.forward):
            model.forward = forward_pass  # the loss calls `model`
            begin, started = time.process_time(), time.perf_counter()
            with autocast(precision, CPU):
                value = loss()
            value.backward()
            seconds.append(time.process_time() - begin)
        if round_number > 0:
            ratios.append(seconds[0] / seconds[1])
        else:  # the first round is a warm-up
            compiling = time.perf_counter() - started  # the compiler is a process of its own
    return ratios, compiling


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, help="rounds of measurements (15)")
    parser.add_argument("--models", nargs="+", choices=list(WIDTHS), default=list(WIDTHS), help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="only the smallest model, to check that everything runs")
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/benchmarks/compilation.json"), help="JSON output file"
    )
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 15)
    return options


if __name__ == "__main__":
    main()
