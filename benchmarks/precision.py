"""Training speed in bfloat16 and float32 on this processor, by model size: the basis of `precision=auto`."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import processor
from dalle import losses
from dalle.models.dvae.model import DiscreteVAE, DVAEConfig
from dalle.models.transformer.model import Transformer, TransformerConfig
from dalle.precision import autocast
from dalle.training.auto_precision import choose_precision

CPU = torch.device("cpu")
WIDTHS = {"dVAE": (8, 16, 32, 64), "transformer": (16, 32, 64, 128, 256)}


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    print(f"{processor()}, {options.threads} threads, {options.rounds} rounds; processor time of forward and backward")
    print("\n| model | width | parameters | float32 / bfloat16 | auto |\n|---|---|---|---|---|")
    rows = []
    for kind, widths in WIDTHS.items():
        for width in widths[: 1 if options.quick else None]:
            model, loss = {"dVAE": dvae, "transformer": transformer}[kind](width)
            row = {
                "model": kind,
                "width": width,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "ratio": ratio(loss, options.rounds),
                "auto": choose_precision("auto", model, CPU).name,
            }
            rows.append(row)
            print(f"| {kind} | {width} | {row['parameters']:,} | {row['ratio']:.2f} | {row['auto']} |", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"processor": processor(), "rows": rows, "threads": options.threads}) + "\n")
    print(f"\nresults  {options.out}")


def dvae(width: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Return a dVAE like the demo's and a function of its likelihood loss on 16 images of 64 x 64 pixels."""
    model = DiscreteVAE(DVAEConfig(vocabulary=128, width=width, blocks_per_group=1, decoder_input=2 * width))
    images = torch.rand(16, 3, 64, 64).to(memory_format=torch.channels_last)
    return model, lambda: losses.logit_laplace_nll(model(images, 1.0)[0], images).mean()


def transformer(width: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Return a transformer like the demo's and a function of its loss on 32 captions with 8 x 8 image tokens."""
    sizes = {"text_positions": 24, "text_vocabulary": 512, "image_vocabulary": 128, "grid": 8}
    model = Transformer(TransformerConfig(**sizes, width=width, depth=4, heads=4, patterns=["dense"]))
    captions, images = torch.randint(500, (32, 24)), torch.randint(128, (32, 64))
    return model, lambda: losses.token_nll(model(captions, images).image, images).mean()


def ratio(loss: Callable[[], Tensor], rounds: int) -> float:
    """Return float32 time / bfloat16 time of the loss and its gradients, interleaved: the median over rounds."""
    ratios = []
    for round_number in range(rounds + 1):
        seconds = []
        for precision in ("float32", "bfloat16"):
            begin = time.process_time()
            with autocast(precision, CPU):
                value = loss()
            value.backward()
            seconds.append(time.process_time() - begin)
        if round_number > 0:  # the first round is a warm-up
            ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, help="rounds of measurements (8)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="only the smallest models, to check that everything runs")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/precision.json"), help="JSON output file")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 8)
    return options


if __name__ == "__main__":
    main()
