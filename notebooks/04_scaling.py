# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4. Scaling
# The loss against the size of the transformer. The paper goes from pilots to 12 billion parameters and prints no law.
# Here the sweep `scaling` trains small transformers of several widths and depths with equal updates on equal data, and
# a power law is fitted to their held-out image loss, in nats per token.
#
# First, pictures of the model that comes with the package, to show what a transformer a thousand times smaller than the
# paper's can draw.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from dalle import DALLE
from dalle.ablations.sweep_page import command_line, cost_phrase, run_count, table_lines
from dalle.bundled import checkpoint_folder
from dalle.cli.report import read_sweep
from dalle.sampling.labelled_grid import ImageRow, labelled_grid

model = DALLE.load(checkpoint_folder(os.environ.get("DALLE_CHECKPOINT", "drawings")))
size = sum(parameter.numel() for parameter in model.transformer.parameters())
print(f"{size / 1e6:.1f}M parameters, {12e9 / size:,.0f} times fewer than the paper's 12 billion")
drawn = model.generate_many(["a blue bird", "a red car"], candidates=16, keep=8, rerank="clip")
labelled_grid([ImageRow(f"{result.caption}: best 8 of 16", result.images, result.scores) for result in drawn], tile=72)

# %% [markdown]
# ## The runs
# `DALLE_SWEEPS` is the folder of all sweeps. The default is `../outputs/ablation`, where the commands write them if
# this notebook is in the folder `notebooks` of the repository.

# %%
SWEEPS = Path(os.environ.get("DALLE_SWEEPS", "../outputs/ablation"))
plt.rcParams.update({"figure.dpi": 64, "axes.grid": True, "grid.alpha": 0.25, "axes.titlesize": 10})

sweep = read_sweep(SWEEPS / "scaling")
law = sweep.power_law()
name = sweep.ablation.power_law
print(f"{run_count(sweep)} runs have finished: {cost_phrase(sweep)}")
if law is None:
    print(f"A law needs runs of three sizes: {command_line(sweep)}")
print("\n".join(table_lines(sweep)))

# %% [markdown]
# ## The law
# Straight in a plot of logarithms, if loss = factor · parameters^exponent. A law without a floor cannot hold for
# ever: the pictures have an entropy of their own. With so few sizes, a floor could not be told from chance.


# %%
def losses(results):
    """(n,) parameters and (n,) losses of runs."""
    points = [(run.parameters, run.metrics[name]) for run in results if name in run.metrics]
    return np.array(points, dtype=np.float64).reshape(-1, 2).T


def law_figure():
    parameters, loss = losses(sweep.finished)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for value in sweep.values:
        left.plot(*losses([run for run in sweep.finished if run.label == value]), "o", label=value)
    line = np.geomspace(parameters.min(), parameters.max())
    left.plot(line, law.factor * line**law.exponent, "--", color="0.4")
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xlabel("parameters")
    left.set_title(f"{name} = {law.factor:.3g} · parameters^{law.exponent:.3f}")
    left.legend(title="width, depth", fontsize=7, frameon=False)
    right.plot(parameters, loss / (law.factor * parameters**law.exponent) - 1, "o")
    right.axhline(0, color="0.4", linestyle="--")
    right.set_xscale("log")
    right.set_xlabel("parameters")
    right.set_title("loss beside the law, relative")


if law is not None:
    law_figure()
    print(f"doubling the parameters multiplies the loss by {2**law.exponent:.4f}")
    print(f"the law explains {law.r_squared:.0%} of the variance of the loss's logarithm")

# %% [markdown]
# ## Does it predict?
# A law is worth what it says of sizes that it was not fitted to: here it is fitted to all but the largest, and asked
# for that one.

# %%
if law is not None:
    parameters, loss = losses(sweep.finished)
    largest = parameters == parameters.max()
    if len(set(parameters[~largest])) < 2:
        print("too few sizes to leave one out")
    else:
        exponent, intercept = np.polyfit(np.log(parameters[~largest]), np.log(loss[~largest]), 1)
        predicted, measured = np.exp(intercept) * parameters.max() ** exponent, loss[largest].mean()
        print(f"{parameters.max():,.0f} parameters: predicted {predicted:.4f}, found {measured:.4f}")
        print(f"the prediction is {predicted / measured - 1:+.1%} off")

# %% [markdown]
# ## Loss against compute
# Updates cost about 6 operations per parameter and token, so a small model is further after the same compute. The
# lower edge of all curves is what each budget could buy. (Embeddings are counted as parameters, and cost less than
# that.)


# %%
def compute_figure():
    figure, panel = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for run in sweep.finished:
        points = [(run.parameters * line["step"], line[name]) for line in run.curve if line.get(name) is not None]
        label = run.label if run.seed == min(finished_run.seed for finished_run in sweep.finished) else None
        if points:
            colour = f"C{sweep.values.index(run.label) % 10}"
            panel.plot(*zip(*points, strict=True), marker=".", color=colour, linewidth=1, label=label)
    panel.set_xscale("log")
    panel.set_xlabel("parameters x updates")
    panel.set_title(f"{name}, held out")
    panel.legend(title="width, depth", fontsize=7, frameon=False)


if sweep.finished:
    compute_figure()
else:
    print("nothing to draw yet")
