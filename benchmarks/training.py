"""Training speed on a CPU of every stage, compared with other projects: python benchmarks/training.py."""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import training_cases
from benchmarks.machine import Clock, matmul_rate, peak_memory, processor, seconds
from benchmarks.sampling import version_of
from benchmarks.training_cases import CPU, FULL, PRECISIONS, QUICK, Case, Sizes
from benchmarks.training_peers import available
from dalle.training.cpu import configure_cpu
from dalle.training.flops import flop_counter


@dataclass(frozen=True)
class Part:
    """Cases that are compared with each other."""

    title: str
    unit: str  # of `Case.count`
    cases: Callable[[Sizes, Path], list[Case]]


PARTS = {
    "transformer": Part("transformer, training update", "tokens", training_cases.transformer),
    "dvae": Part("dVAE, training update", "images", training_cases.dvae),
    "clip": Part("CLIP, training update", "images", training_cases.clip),
    "reconstruction": Part("dVAE of OpenAI's size, encode and decode", "images", training_cases.reconstruction),
    "attention": Part("attention, forward and backward", "positions", training_cases.attention),
    "relaxation": Part("relaxed codes and their embedding, forward and backward", "codes", training_cases.relaxation),
}


# processor time is that of all threads: measure with one if other work is on the machine
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass(frozen=True)
class CaseResult:
    """Speed and memory of one case."""

    name: str
    precision: str
    ours: bool
    per_second: float  # tokens, images and so on: from the median of the rounds
    flops_per_second: float  # of matrix products, convolutions and attention
    share_of_matmul_rate: float
    memory_bytes: int  # weights, plus the increase of resident memory
    times_peer: float | None  # speed compared with the best peer in the same precision; None: there is none


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    sizes = QUICK if options.quick else FULL
    content = {
        "processor": processor(),
        "threads": options.threads,
        "clock": options.clock,
        "rounds": options.rounds,
        "sizes": asdict(sizes),
        "versions": {name: version_of(name) for name in ("torch", "transformers", "x-transformers", "dalle-pytorch")},
        "parts": {},
        "unavailable": {},
    }
    print(f"{processor()}, {options.threads} threads, {options.rounds} interleaved rounds", flush=True)
    # peers too are faster with the settings of train.py
    with configure_cpu(CPU), tempfile.TemporaryDirectory() as folder:
        for name in options.parts:
            part = PARTS[name]
            cases = part.cases(sizes, Path(folder))
            peers, unavailable = available(name, sizes, Path(folder)) if options.peers else ([], {})
            for peer, reason in unavailable.items():
                print(f"\n{peer}: {reason}")
            results = compare([*cases, *peers], options.rounds, CLOCKS[options.clock])
            print(f"\n{table(part, results)}", flush=True)
            content["parts"][name] = [asdict(result) for result in results]
            content["unavailable"] |= unavailable
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=2) + "\n")
    print(f"\nresults  {options.out}")


def compare(cases: list[Case], rounds: int, clock: Clock = time.perf_counter) -> list[CaseResult]:
    """Time all cases, interleaved over the rounds, with the rate of matrix products in the same rounds."""
    flops, memory = [], []
    for case in cases:
        case.work()  # warm-up
        # in a pass of its own, which starts with freed memory returned to the system
        memory.append(peak_memory(case.work)[1])
        with flop_counter() as counter:
            case.work()
        flops.append(counter.get_total_flops())
    times: list[list[float]] = [[] for _ in cases]
    rates: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    for _ in range(rounds):
        for precision, found in rates.items():
            found.append(matmul_rate(precision, clock=clock))
        for index, case in enumerate(cases):
            times[index].append(seconds(case.work, clock))
    rate = {precision: statistics.median(found) for precision, found in rates.items()}
    medians = [statistics.median(elapsed) for elapsed in times]
    speeds = [case.count / median for case, median in zip(cases, medians, strict=True)]
    best = {
        precision: max(
            (speed for case, speed in zip(cases, speeds, strict=True) if not case.ours and case.precision == precision),
            default=None,
        )
        for precision in PRECISIONS
    }
    results = []
    for index, case in enumerate(cases):
        per_second, peer = flops[index] / medians[index], best[case.precision]
        results.append(
            CaseResult(
                case.name,
                case.precision,
                case.ours,
                per_second=speeds[index],
                flops_per_second=per_second,
                share_of_matmul_rate=per_second / rate[case.precision],
                memory_bytes=case.weights_bytes + memory[index],
                times_peer=None if peer is None else speeds[index] / peer,
            )
        )
    return results


def table(part: Part, rows: list[CaseResult]) -> str:
    """Return the results of one part as a Markdown table."""
    lines = [
        f"| {part.title} | precision | {part.unit}/s | times best peer | share of matmul rate | memory |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = "" if row.times_peer is None else f"{row.times_peer:.2f}"
        share, memory = f"{row.share_of_matmul_rate:.0%}", f"{row.memory_bytes / 2**20:,.0f} MiB"
        lines.append(f"| {row.name} | {row.precision} | {row.per_second:.4g} | {times} | {share} | {memory} |")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="what to compare (all)")
    parser.add_argument("--rounds", type=int, help="rounds of measurements (5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch (%(default)s)")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="time that is measured (%(default)s)")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="measure only this project")
    parser.add_argument("--quick", action="store_true", help="tiny models, one round, to check that everything runs")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/training.json"), help="JSON output file")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 5)
    return options


if __name__ == "__main__":
    main()
