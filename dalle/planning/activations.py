"""Memory and arithmetic of one micro-batch's forward pass, which runs on fake tensors: shapes and dtypes, no data."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dalle.models.blocks import ResidualBranch
from dalle.models.clip.model import CLIP
from dalle.models.dvae.model import DiscreteVAE
from dalle.models.linear_cross_entropy import MAX_LOGITS
from dalle.models.transformer.model import Transformer
from dalle.precision import autocast
from dalle.training.branch_hooks import attach_hooks
from dalle.training.stage import TrainingConfig

FLOAT32 = 4  # bytes
CPU = torch.device("cpu")


def attention_flops(q: torch.Size, k: torch.Size, v: torch.Size, *_: object, **__: object) -> int:
    """Count the operations of attention between all pairs of positions: shapes (b, heads, n, d)."""
    return 2 * q.numel() * k[2] + 2 * q[:3].numel() * v[2] * v[3]


# torch counts its attention kernels for GPUs, and not the one for CPUs
ATTENTION_FLOPS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}


class Forward(NamedTuple):
    """Memory and arithmetic of a forward pass."""

    kept: int  # bytes of tensors kept for the backward pass, without the model's own
    recomputed: int  # bytes of the activations of one residual branch that the backward pass computes again
    flops: int  # operations of products and convolutions, two for each multiplication and addition


def count_forward(
    build: Callable[[], nn.Module], config: TrainingConfig, precision: str, images: int, image_size: int
) -> Forward:
    """Count what a forward pass of `images` images keeps and computes, with the hooks that `config` asks for.

    build: builds the model; it is called on the meta device.
    """
    whole = None
    if config.recompute:
        whole = count_forward(build, replace(config, recompute=False), precision, images, image_size)
    with torch.device("meta"):
        model = build()
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no other storage gets the id of one that was counted
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model.to_empty(device=CPU)
        attach_hooks(model, config, precision, CPU)
        own = {id(tensor.untyped_storage()) for tensor in (*model.parameters(), *model.buffers())}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if id(storage) not in own:
                kept[id(storage)] = storage.nbytes()
                alive.append(tensor)
            return tensor

        counter = FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS)
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with counter, hooks, autocast(precision, CPU):
            forward(model, images, image_size)
    branches = sum(isinstance(module, ResidualBranch) for module in model.modules())
    recomputed = whole.kept // branches if whole else 0
    return Forward(sum(kept.values()), recomputed, counter.get_total_flops())


def forward(model: nn.Module, images: int, image_size: int) -> object:
    """Run the forward pass of a stage's model on a micro-batch of zeros."""
    if isinstance(model, Transformer):
        config = model.config
        caption = torch.zeros(images, config.text_positions, dtype=torch.int64)
        return model(caption, torch.zeros(images, config.grid**2, dtype=torch.int64))
    pixels = torch.zeros(images, 3, image_size, image_size)
    if isinstance(model, DiscreteVAE):
        return model(pixels, 1.0, None)
    assert isinstance(model, CLIP)
    return model(pixels, torch.zeros(images, model.config.text_positions, dtype=torch.int64))


def loss_bytes(model: nn.Module, images: int) -> int:
    """Return the bytes of the transformer's logits and their gradient, which exist together at the end of forward."""
    if not isinstance(model, Transformer):
        return 0
    config = model.config
    text = images * config.text_positions * (config.text_vocabulary + 1)
    image = images * config.grid**2 * config.image_vocabulary
    return 2 * FLOAT32 * (min(text, MAX_LOGITS) + min(image, MAX_LOGITS))
