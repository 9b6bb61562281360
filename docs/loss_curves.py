"""Plot the losses of runs for docs/training.md: python docs/loss_curves.py outputs/demo docs/losses/drawings

Each folder has a run's metrics.jsonl in dvae/, clip/ and transformer/, or in some of them. Prints a Markdown table of
the last held-out values.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).with_name("loss-curves.png")
# stage -> metrics to plot: (name in metrics.jsonl, label)
METRICS = {
    "dvae": [("nll", "reconstruction loss per sub-pixel"), ("hard_error", "error of decoded hard codes")],
    "clip": [("loss", "contrastive loss"), ("accuracy", "accuracy within a batch")],
    "transformer": [("image", "nats per image token"), ("text", "nats per text token")],
}


def read_curve(run: Path, split: str, metric: str) -> tuple[list[int], list[float]]:
    """Return the steps and the values of a metric that a run recorded for `split`."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    points = [(line["step"], line[metric]) for line in lines if line["split"] == split and metric in line]
    return [step for step, _ in points], [value for _, value in points]


def has_run(folder: Path, stage: str) -> bool:
    return (folder / stage / "metrics.jsonl").is_file()


def plot_runs(folders: list[Path], out: Path) -> None:
    """Write a figure to `out`: a row of panels for each folder, two metrics of each stage; val is held out."""
    stages = [stage for stage in METRICS if any(has_run(folder, stage) for folder in folders)]
    columns = [(stage, metric, label) for stage in stages for metric, label in METRICS[stage]]
    size = (2.6 * len(columns), 2.3 * len(folders))
    figure, panels = plt.subplots(len(folders), len(columns), figsize=size, squeeze=False, layout="constrained")
    for row, folder in zip(panels, folders, strict=True):
        for panel, (stage, metric, label) in zip(row, columns, strict=True):
            if not has_run(folder, stage):
                panel.axis("off")
                continue
            for split, style in (("train", "C0-"), ("val", "C1o:")):
                steps, values = read_curve(folder / stage, split, metric)
                if steps:
                    panel.plot(steps, values, style, markersize=3, linewidth=1, label=split)
            panel.set_title(f"{folder.name}: {stage}\n{label}", fontsize=8)
            panel.tick_params(labelsize=7)
            panel.legend(fontsize=7, frameon=False)
    figure.savefig(out, dpi=72)


def table(folders: list[Path]) -> str:
    """Return a Markdown table of the last held-out value of each metric."""
    lines = ["| run | stage | updates | held out at the end |", "|---|---|---:|---|"]
    for folder in folders:
        for stage, metrics in METRICS.items():
            if not has_run(folder, stage):
                continue
            curves = {label: read_curve(folder / stage, "val", metric) for metric, label in metrics}
            ends = ", ".join(f"{label} {values[-1]:.3f}" for label, (_, values) in curves.items())
            step = max(steps[-1] for steps, _ in curves.values())
            lines.append(f"| `{folder.name}` | {stage} | {step:,} | {ends} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Plot the losses of runs.")
    parser.add_argument("folders", nargs="+", type=Path, help="folders with dvae/, clip/ and transformer/")
    parser.add_argument("--out", type=Path, default=OUT, help="the figure")
    options = parser.parse_args()
    plot_runs(options.folders, options.out)
    print(table(options.folders))
