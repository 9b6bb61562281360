"""Command line of `make gpu`: python -m benchmarks.gpu tests|sampling|training|demo|summary --device cuda."""

import argparse
import importlib
import json
import time
from pathlib import Path

import torch

from benchmarks.gpu import hardware, part, summary
from dalle.precision import use_exact_float32

PARTS = ("tests", "sampling", "training", "demo")


def main() -> None:
    options = parse()
    if options.action == "summary":
        lines, complete = summary.summary(options.out, PARTS)
        print("\n".join(lines))
        raise SystemExit(0 if complete else 1)
    if options.action in PARTS:
        complete = part.run(load_part(options.action), options.device, options.quick, options.out, options.minutes)
        raise SystemExit(0 if complete else 1)
    device = select_device(options.device)
    if options.action == "describe":
        print(json.dumps(hardware.describe(device)))
        return
    use_exact_float32()
    chosen, name = options.names
    folder = options.out / f"{chosen}-files"
    folder.mkdir(parents=True, exist_ok=True)
    measurement_options = part.Options(device, options.quick, folder, options.deadline or time.time() + 3600)
    part.measure(load_part(chosen), name, measurement_options, options.result)


def load_part(name: str) -> part.Part:
    """Return the part with this name, imported alone: a missing package affects only the part that needs it."""
    return importlib.import_module(f"benchmarks.gpu.{name}").PART


def select_device(name: str) -> torch.device:
    """Return the torch device `name`. Exits with a message if it is not available."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise SystemExit(
            f"no CUDA device was found by torch {torch.__version__}, {built}: check nvidia-smi and the torch of "
            "PYTHON; DEVICE=cpu QUICK=1 runs everything at toy size on the CPU"
        )
    device = torch.device(name)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    return device


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("action", choices=[*PARTS, "summary", "describe", "measure"])
    parser.add_argument("names", nargs="*", help="for measure: the part and the measurement")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to check that everything runs")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"), help="output folder")
    parser.add_argument("--minutes", type=float, default=8.8, help="time limit of a part in minutes (%(default)s)")
    parser.add_argument("--result", type=Path, default=Path("/dev/stdout"), help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
