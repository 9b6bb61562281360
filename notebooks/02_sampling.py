# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2. Sampling
# Temperature, filters, guidance, reranking and edits: what each does to the pictures of one model.
#
# `DALLE_CHECKPOINT` names the checkpoint; without it, it is `outputs/demo`, which `make demo` trains. The judge that
# counts right pictures knows the `blocks` world alone.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image

import dalle
from dalle import DALLE, checkpoint
from dalle.data import config_from_dict, open_source
from dalle.evaluation.judges.blocks_judge import judge
from dalle.evaluation.metrics.best_of_n import best_of_n_curves
from dalle.evaluation.metrics.caption_samples import caption_qualities
from dalle.evaluation.plots import plot_best_of_n
from dalle.sampling.edits.complete import complete
from dalle.sampling.edits.inpaint import inpaint
from dalle.sampling.edits.outpaint import OutpaintConfig, outpaint
from dalle.sampling.edits.remix import remix
from dalle.sampling.edits.variations import variations
from dalle.sampling.labelled_grid import ImageRow, labelled_grid
from dalle.sampling.sampling_config import SamplingConfig

ROOT = Path(dalle.__file__).parents[1]
CHECKPOINT = Path(os.environ.get("DALLE_CHECKPOINT", ROOT / "outputs" / "demo"))
CAPTIONS = 12
CANDIDATES = int(os.environ.get("DALLE_CANDIDATES", 16))  # for each caption; more make curves smoother, and take longer
plt.rcParams.update({"figure.dpi": 64, "axes.grid": True, "grid.alpha": 0.25})
torch.set_grad_enabled(False)

model = DALLE.load(CHECKPOINT)
_, meta = checkpoint.read_config(CHECKPOINT / "transformer", "transformer")
source = open_source(config_from_dict(meta["data"]), "val")
captions = [source.captions(index)[0] for index in range(CAPTIONS)]
statements = [source.scene(index).statement for index in range(CAPTIONS)]
caption = captions[0]
print("\n".join(captions))

# %% [markdown]
# ## Temperature and filters
# The paper draws at temperature 1, without filters and without guidance (Section 2.6), so guidance is off here,
# whatever the checkpoint asks for. A little colder, pictures are surer; much colder, they leave things out, or put them
# off until the last rows: wherever a thing may begin, that it begins elsewhere is likelier. Right is the share of
# pictures in which every stated fact is true; variety the share of tokens in which two pictures of one caption differ,
# over all pairs of them. All settings share their noise, candidate by candidate.


# %%
def draw(captions, candidates, **settings):
    """Candidates of some captions, best first; a caption that is too long is cut, as in training."""
    return model.generate_many(captions, candidates=candidates, keep=candidates, truncate=True, **settings)


def drawn(**settings):
    """All candidates of every caption: (right, variety, results)."""
    results = draw(captions, CANDIDATES, **settings)
    right = [
        judge(image, statement).holds
        for result, statement in zip(results, statements, strict=True)
        for image in result.images
    ]
    tokens = torch.stack([result.tokens.flatten(1) for result in results])  # (captions, candidates, h * w)
    differ = (tokens[:, :, None] != tokens[:, None]).float().mean(dim=-1)  # (captions, candidates, candidates)
    variety = differ.sum().item() / (len(results) * CANDIDATES * (CANDIDATES - 1))
    return sum(right) / len(right), variety, results


def in_order(result):
    """A result's pictures as they were drawn: the same place is the same noise."""
    return [image for _, image in sorted(zip(result.candidates, result.images, strict=True), key=lambda pair: pair[0])]


temperatures = [0.0, 0.5, 0.8, 1.0, 1.2]
by_temperature = {each: drawn(temperature=each, guidance=1.0) for each in temperatures}
filters = {"top_k": 4, "top_p": 0.9, "min_p": 0.1}
by_filter = {f"{name}={each}": drawn(**{name: each}, guidance=1.0) for name, each in filters.items()}

figure, panel = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
panel.plot(*zip(*[(variety, right) for right, variety, _ in by_temperature.values()], strict=True), color="0.7")
for name, (right, variety, _) in {
    **{f"T={each:g}": by_temperature[each] for each in temperatures},
    **by_filter,
}.items():
    panel.plot(variety, right, "o", color="C0" if name.startswith("T=") else "C1")
    panel.annotate(name, (variety, right), xytext=(4, 4), textcoords="offset points", fontsize=9)
panel.set_xlabel("variety: share of tokens that differ")
_ = panel.set_ylabel("right: every fact is true")

# %%
colder = {each: by_temperature[each][2][0] for each in (0.0, 0.5, 1.0, 1.2)}
rows = [ImageRow(f"temperature {each:g}: {caption}", in_order(found)[:8], None) for each, found in colder.items()]
labelled_grid(rows, tile=72)

# %% [markdown]
# ## Guidance
# Guidance scales what the caption changes, and needs a model that was also trained on empty captions
# (`stage.caption_dropout=0.1`). One that was not says so.

# %%
SCALES = [1.0, 2.0, 4.0]
try:
    guided = {scale: drawn(guidance=scale) for scale in SCALES}
except ValueError as refusal:
    guided = {}
    print(refusal)
for scale, (right, variety, _) in guided.items():
    print(f"guidance {scale:g}: right {right:.2f}, variety {variety:.2f}")

# %% [markdown]
# ## Reranking
# Of many candidates, CLIP's favourites (Section 2.6): above the best of many, below those that it likes least. Then how
# quality grows with the number of candidates (Figure 9c); `perfect` is what could be had from the same candidates.

# %%
(many,) = draw([caption], 2 * CANDIDATES)
best = ImageRow(f"best: {caption}", many.images[:8], None if many.scores is None else many.scores[:8])
worst = ImageRow("worst", many.images[-8:], None if many.scores is None else many.scores[-8:])
labelled_grid([best, worst], tile=72)

# %%
config = SamplingConfig(candidates=2 * CANDIDATES, keep=1)
curves = best_of_n_curves(model, captions, caption_qualities(source, captions), config)
plotted = plot_best_of_n(curves)
plotted.resize((plotted.width // 2, plotted.height // 2), Image.Resampling.LANCZOS)

# %% [markdown]
# ## Edits
# Each edit keeps some tokens of a picture, and the model draws the others; the caption describes the whole result
# (docs/edits.md). The first picture of each row is the one that is edited.

# %%
original, other = (model.encode_image(source[index].image) for index in (0, 1))
mask = Image.new("L", original.size)
mask.paste(255, (0, original.size[1] // 2, original.size[0] // 2, original.size[1]))  # the lower left quarter
FEW = 5
canvases = {
    "complete": complete(original),
    "inpaint, lower left quarter": inpaint(original, mask),
    "outpaint, two columns to the right": outpaint(original, OutpaintConfig(right=2)),
    "variations, half of the tokens": variations(original, candidates=FEW),
    "remix, with another picture below": remix(original, other, candidates=FEW),
}
rows = []
for name, canvas in canvases.items():
    (edited,) = draw([caption], FEW, canvas=canvas)
    rows.append(ImageRow(f"{name}: {caption}", [original.pixels, *in_order(edited)], None))
labelled_grid(rows, tile=72)
