# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. Fine-tuning on a folder
# The model that comes with the package learns new pictures from a folder of 60 images and their captions. Here they are
# dominoes, which it has never seen; `DALLE_PICTURES` names another folder, with a text file beside each image
# (docs/data.md). A model of the same size with random weights is trained for as many updates, for comparison.
#
# Needs `pip install 'dalle[eval]'` and about three minutes on two cores.

# %%
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import torch
from PIL import Image, ImageDraw

from dalle import DALLE
from dalle.bundled import checkpoint_folder
from dalle.sampling.labelled_grid import ImageRow, labelled_grid

CHECKPOINT = os.environ.get("DALLE_CHECKPOINT", "drawings")
SIZES = json.loads(os.environ.get("DALLE_SIZES", '["preset=drawings", "data.image_size=128"]'))  # those of CHECKPOINT
UPDATES = int(os.environ.get("DALLE_UPDATES", 120))
WORK = Path(mkdtemp(prefix="dominoes-"))
PICTURES = Path(os.environ.get("DALLE_PICTURES", WORK / "pictures"))
plt.rcParams.update({"figure.dpi": 64, "axes.grid": True, "grid.alpha": 0.25})
torch.set_grad_enabled(False)

NUMBERS = ("no pips", "one", "two", "three", "four", "five", "six")
COLOURS = {"red": "#c9302c", "green": "#2e8b57", "blue": "#2b5fb8", "black": "#222222"}
# which of the nine places of a half have a pip, by number
PIPS = [(), (4,), (0, 8), (0, 4, 8), (0, 2, 6, 8), (0, 2, 4, 6, 8), (0, 2, 3, 5, 6, 8)]


def draw_domino(upper: int, lower: int, colour: str) -> Image.Image:
    """Draw a domino on a white ground, 128 x 128 pixels."""
    image = Image.new("RGB", (256, 256), "white")  # reduced to half its size, which smooths the edges
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((68, 12, 188, 244), 20, fill=COLOURS[colour])
    pen.line((80, 128, 176, 128), fill="white", width=5)
    for top, number in ((20, upper), (132, lower)):
        for place in PIPS[number]:
            x, y = 96 + 32 * (place % 3), top + 20 + 32 * (place // 3)
            pen.ellipse((x - 10, y - 10, x + 10, y + 10), fill="white")
    return image.resize((128, 128), Image.Resampling.LANCZOS)


if not PICTURES.exists():
    PICTURES.mkdir()
    every = [(upper, lower, colour) for upper in range(7) for lower in range(7) for colour in COLOURS]
    for number, (upper, lower, colour) in enumerate(random.Random(0).sample(every, 60)):
        draw_domino(upper, lower, colour).save(PICTURES / f"{number:02}.png")
        caption = f"a {colour} domino with {NUMBERS[upper]} above {NUMBERS[lower]}"
        (PICTURES / f"{number:02}.txt").write_text(caption + "\n")

examples = sorted(PICTURES.glob("*.png"))[:5]
print("\n".join(path.with_suffix(".txt").read_text().strip() for path in examples))
labelled_grid([ImageRow("training pictures", [Image.open(path) for path in examples], None)], tile=96)

# %% [markdown]
# ## Train
# `init=drawings` starts from the weights that come with the package, with its tokenizer and its dVAE;
# `preset=drawings` has the sizes of its models. A fifth of the pictures is held out. The learning rate is a quarter
# of that from scratch.


# %%
def train(run: str, *settings: str) -> list[dict]:
    """Train a transformer on the folder. Returns the held-out losses: [{"step": 20, "image": ...}, ...]."""
    command = [sys.executable, "-m", "dalle", "train", "stage=transformer", *SIZES, f"run={run}", f"out={WORK}"]
    command += ["data=folder", f"data.path={PICTURES}", "data.validation_share=0.2", "wandb.mode=disabled", *settings]
    command += [f"stage.steps={UPDATES}", "stage.batch_size=16"]
    command += ["stage.optimizer.warmup_steps=10", "stage.ema.decay=0.9"]
    command += [f"stage.validate_every={max(1, UPDATES // 6)}", "stage.preview_every=0", "stage.workers=0"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    lines = map(json.loads, (WORK / "transformer" / run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == "val"]


tuned = train("tuned", f"init={checkpoint_folder(CHECKPOINT)}", "stage.optimizer.learning_rate.start=5e-4")
scratch = train("scratch", f"dvae={checkpoint_folder(CHECKPOINT) / 'dvae'}")

figure, panel = plt.subplots(figsize=(5, 2.6), layout="constrained")
for name, losses in (("from the checkpoint", tuned), ("from random weights", scratch)):
    panel.plot([line["step"] for line in losses], [line["image"] for line in losses], marker="o", label=name)
panel.set_xlabel("updates")
panel.set_ylabel("held-out image loss")
_ = panel.legend(frameon=False)
print(f"held-out image loss after {UPDATES} updates: {tuned[-1]['image']:.3f}, from scratch {scratch[-1]['image']:.3f}")

# %% [markdown]
# ## Sample
# Before and after, for captions that are not in the folder. All of the first six candidates are shown.

# %%
training_captions = {path.read_text().strip() for path in PICTURES.glob("*.txt")}
all_captions = [
    f"a {colour} domino with {upper} above {lower}" for colour in COLOURS for upper in NUMBERS for lower in NUMBERS
]
captions = random.Random(1).sample([caption for caption in all_captions if caption not in training_captions], 4)
rows = []
for name, folder in (("before", CHECKPOINT), ("after", WORK / "transformer" / "tuned")):
    model = DALLE.load(folder)
    for result in model.generate_many(captions, candidates=6, keep=6, truncate=True):
        rows.append(ImageRow(f"{name}: {result.caption}", result.images, None))
labelled_grid(rows, tile=72)
