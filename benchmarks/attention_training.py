"""Attention forward and backward in bfloat16 on this processor, by implementation: the basis of MAX_MATMUL_KEYS."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import processor
from dalle.models.attention import MAX_MATMUL_KEYS, matmul_attention

SHAPES = ((64, 4, 80, 32), (32, 4, 288, 64), (8, 8, 544, 64), (8, 8, 800, 64), (4, 8, 1280, 64))  # b, heads, n, d


def torch_kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def torch_kernel_in_float32(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch_kernel(q.float(), k.float(), v.float()).to(q.dtype)


def matrix_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    past = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    return matmul_attention(q, k, v, past)


IMPLEMENTATIONS = (torch_kernel_in_float32, torch_kernel, matrix_products)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    print(f"{processor()}, {options.threads} threads, {options.rounds} rounds; processor time of forward and backward")
    print(f"matrix products are used up to {MAX_MATMUL_KEYS} keys, on processors with AMX\n")
    print("times torch's kernel in float32:\n")
    print("| batch, heads, positions, width | torch's kernel in bfloat16 | matrix products |\n|---|---|---|")
    rows = []
    for shape in SHAPES[: 1 if options.quick else None]:
        times: dict[str, list[float]] = {implementation.__name__: [] for implementation in IMPLEMENTATIONS}
        for round_number in range(options.rounds + 1):
            for attend in IMPLEMENTATIONS:
                elapsed = seconds(attend, shape)
                if round_number > 0:  # the first round is a warm-up
                    times[attend.__name__].append(elapsed)
        medians = {name: statistics.median(values) for name, values in times.items()}
        ratios = {name: medians["torch_kernel_in_float32"] / median for name, median in medians.items()}
        rows.append({"shape": shape, "seconds": medians, "times_float32": ratios})
        print(f"| {shape} | {ratios['torch_kernel']:.2f} | {ratios['matrix_products']:.2f} |", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"processor": processor(), "rows": rows, "threads": options.threads}) + "\n")
    print(f"\nresults  {options.out}")


def seconds(attend: Callable[[Tensor, Tensor, Tensor], Tensor], shape: tuple[int, int, int, int]) -> float:
    """Return the processor time of one forward and backward pass; queries, keys and values are views of one tensor."""
    b, heads, n, d = shape
    fused = torch.randn(b, n, 3, heads, d, dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn(b, heads, n, d, dtype=torch.bfloat16)
    begin = time.process_time()
    attend(*fused.permute(2, 0, 3, 1, 4)).backward(gradient)
    return time.process_time() - begin


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, help="rounds of measurements (7)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one shape, one round, to check that everything runs")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/attention_training.json"))
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 7)
    return options


if __name__ == "__main__":
    main()
