# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. The ablations
# The paper's questions as sweeps (docs/ablations.md): the results of `train.py -m +ablation=<name>` and `evaluate.py -m
# +ablation=<name>`, side by side. Sweeps and runs that are missing are listed.
#
# Such questions can be asked of any model. First, two of them on pictures of the model that comes with the package:
# temperature, and reranking by CLIP (Section 2.6).

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt

from dalle import DALLE
from dalle.ablations.sweep_page import command_line, result_phrase, run_count
from dalle.bundled import checkpoint_folder
from dalle.cli.report import read_sweep
from dalle.cli.sweeps import ablations
from dalle.sampling.labelled_grid import ImageRow, labelled_grid

CAPTION = "a green leaf"
model = DALLE.load(checkpoint_folder(os.environ.get("DALLE_CHECKPOINT", "drawings")))
rows = []
for temperature in (1.0, 0.7):
    result = model.generate(CAPTION, candidates=16, keep=16, temperature=temperature, rerank="clip")
    by_candidate = sorted(zip(result.candidates, result.images, strict=True), key=lambda pair: pair[0])
    first = [image for _, image in by_candidate[:8]]
    rows.append(ImageRow(f"{CAPTION}, temperature {temperature:g}: the first 8 of 16", first, None))
    rows.append(ImageRow("the best 8 of 16 by CLIP", result.images[:8], result.scores and result.scores[:8]))
labelled_grid(rows, tile=72)

# %% [markdown]
# ## The sweeps
# `DALLE_SWEEPS` is the folder of all sweeps. The default is `../outputs/ablation`, where the commands write them if
# this notebook is in the folder `notebooks` of the repository.

# %%
SWEEPS = Path(os.environ.get("DALLE_SWEEPS", "../outputs/ablation"))
plt.rcParams.update({"figure.dpi": 56, "axes.grid": True, "grid.alpha": 0.25, "axes.titlesize": 10})

sweeps = sorted((read_sweep(SWEEPS / name) for name in ablations()), key=lambda sweep: sweep.ablation.letter)
finished = [sweep for sweep in sweeps if sweep.finished]
for sweep in sweeps:
    print(f"{sweep.ablation.letter} {sweep.ablation.name:18} {run_count(sweep):>9} runs  {result_phrase(sweep)}")

# %% [markdown]
# ## What is missing

# %%
for sweep in sweeps:
    missing = {run.folder.name: run.missing_reason for run in sweep.results if run.missing_reason}
    if missing:
        print(f"{sweep.ablation.name}: {len(missing)} jobs. {command_line(sweep)}")
        for reason in sorted(set(missing.values()) - {"not started", "not started, or unfinished"}):
            print(f"    {reason}")

# %% [markdown]
# ## Each question, answered by its first metric
# A dot is a run, a bar the mean over seeds, and the paper's choice is marked. Whether a difference is more than noise
# is what the answers above and docs/ablations.md say.


# %%
def dots(panel, sweep, metric):
    """One metric of all runs of a sweep."""
    for place, value in enumerate(sweep.values):
        runs = metric.runs.get(value, ())
        colour = "C1" if value == sweep.ablation.paper_value else "C0"
        panel.plot([place] * len(runs), runs, "o", color=colour, alpha=0.6, markersize=4)
        if runs:
            panel.plot([place - 0.3, place + 0.3], [metric.mean(value)] * 2, color=colour, linewidth=2)
    names = [f"{value} ◂" if value == sweep.ablation.paper_value else value for value in sweep.values]
    panel.set_xticks(range(len(names)), [name[:18] for name in names], rotation=30, ha="right", fontsize=8)


def overview(sweeps, columns=4):
    """A panel for each sweep."""
    rows = -(-len(sweeps) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(3.4 * columns, 2.7 * rows), squeeze=False, layout="constrained"
    )
    for panel, sweep in zip(panels.flat, sweeps, strict=False):
        metric = next(sweep_metric for sweep_metric in sweep.metrics if sweep_metric.runs)
        dots(panel, sweep, metric)
        panel.set_title(f"{sweep.ablation.letter} {sweep.ablation.name}: {metric.title} ({metric.better} is better)")
    for panel in panels.flat[len(sweeps) :]:
        panel.set_visible(False)


measured = [sweep for sweep in finished if any(sweep_metric.runs for sweep_metric in sweep.metrics)]
if measured:
    overview(measured)
else:
    print("no sweep has finished runs yet")

# %% [markdown]
# ## On the way
# The same metric during training: a line for each run, a colour for each value. The paper's own figures of this kind
# are of gradient compression and of mixed precision; here they are drawn for every sweep that trains.


# %%
def on_the_way(sweeps, columns=4):
    """A panel for each sweep whose runs were validated more than once."""
    rows = -(-len(sweeps) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(3.4 * columns, 2.5 * rows), squeeze=False, layout="constrained"
    )
    for panel, sweep in zip(panels.flat, sweeps, strict=False):
        name = next(iter(sweep.ablation.metrics))
        for run in sweep.finished:
            points = [(line["step"], line[name]) for line in run.curve if line.get(name) is not None]
            colour = f"C{sweep.values.index(run.label) % 10}"
            label = run.label if run.seed == min(finished_run.seed for finished_run in sweep.finished) else None
            if points:
                panel.plot(*zip(*points, strict=True), color=colour, linewidth=1, label=label)
        panel.set_title(f"{sweep.ablation.name}: {name}")
        panel.legend(fontsize=6, frameon=False)
    for panel in panels.flat[len(sweeps) :]:
        panel.set_visible(False)


trained = [sweep for sweep in measured if any(len(run.curve) > 1 for run in sweep.finished)]
if trained:
    on_the_way(trained)
else:
    print("no sweep with curves has finished runs yet")

# %% [markdown]
# ## Figure 9: candidates and blur
# Sweeps that measure one model at many points, as the paper's Figure 9: quality against the number of candidates that
# CLIP chooses from (c), and distance to real pictures against the radius that both are blurred with (a, b).

# %%
with_axis = [sweep for sweep in measured if sweep.ablation.axis]
for sweep in with_axis:
    figure, panels = plt.subplots(
        1, len(sweep.metrics), figsize=(3.4 * len(sweep.metrics), 2.7), squeeze=False, layout="constrained"
    )
    for panel, metric in zip(panels[0], sweep.metrics, strict=True):
        values = [value for value in sweep.values if value in metric.runs]
        panel.plot(values, [metric.mean(value) for value in values], marker="o", markersize=4)
        panel.set_xlabel(sweep.ablation.axis)
        panel.set_title(f"{metric.title} ({metric.better} is better)")
if not with_axis:
    print("neither has been measured yet")

# %% [markdown]
# ## In words
# What the runs say to each thing that the paper would lead one to expect.

# %%
for sweep in finished:
    print(f"{sweep.ablation.letter} {sweep.ablation.question}")
    for result in sweep.claim_results:
        print(f"    {result.kind}: {result.sentence}")
