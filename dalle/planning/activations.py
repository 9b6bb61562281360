"""Memory and FLOPs of one micro-batch's forward pass, which runs on fake tensors: shapes and dtypes, no data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dalle.models.clip.model import CLIP
from dalle.models.linear_cross_entropy import MAX_LOGITS
from dalle.models.transformer.model import Transformer
from dalle.models.transformer.sparse_attention import use_dense_masks
from dalle.precision import autocast
from dalle.training.branch_hooks import attach_hooks
from dalle.training.flops import flop_counter
from dalle.training.parameter_storage import store_in_bfloat16
from dalle.training.stage import StageConfig

FLOAT32 = 4  # bytes
CPU = torch.device("cpu")


class ForwardCost(NamedTuple):
    """Memory and FLOPs of a forward pass."""

    saved_bytes: int  # tensors saved for the backward pass, without the model's own
    flops: int  # of matrix products, convolutions and attention


def forward_cost(
    build: Callable[[], nn.Module], config: Any, precision: str, images: int, image_size: int
) -> ForwardCost:
    """Count what a forward pass of `images` images saves and computes on a GPU, with the hooks that `config` asks for.

    build: builds the model; it is called on the meta device.
    config: of the stage, with the sizes of `model_for`.
    image_size: side of the images of the dVAE and the decoder in pixels; other models' configs have it.
    """
    with torch.device("meta"):
        model = use_dense_masks(build())  # as on a GPU, though the fake tensors are a CPU's
    if config.parameters == "bfloat16":
        store_in_bfloat16(model)
    saved: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no other storage gets the id of one that was counted
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model.to_empty(device=CPU)
        attach_hooks(model, config, precision, CPU)
        own = {id(tensor.untyped_storage()) for tensor in (*model.parameters(), *model.buffers())}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if id(storage) not in own:
                saved[id(storage)] = storage.nbytes()
                alive.append(tensor)
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with flop_counter() as counter, hooks, autocast(precision, CPU):
            model(*config.example_inputs(images, image_size))
    return ForwardCost(sum(saved.values()), counter.get_total_flops())


def logits_bytes(model: nn.Module, images: int, world: int) -> int:
    """Return the bytes of the logits and their gradient, which exist together when the backward pass begins.

    They are the transformer's, and those of CLIP's loss: log-probabilities of `images` images among the captions of
    `world` ranks and of as many captions among the images, and two gradients of either.
    """
    if isinstance(model, CLIP):
        return 4 * FLOAT32 * images * world * images
    if not isinstance(model, Transformer):
        return 0
    config = model.config
    text = images * config.text_positions * (config.text_vocabulary + 1)
    image = images * config.grid**2 * config.image_vocabulary
    return 2 * FLOAT32 * (min(text, MAX_LOGITS) + min(image, MAX_LOGITS))


def targets_bytes(model: nn.Module, config: StageConfig, images: int) -> int:
    """Return the bytes of soft targets, which all micro-batches of an update have at once; 0 for codes as targets."""
    if not isinstance(model, Transformer) or getattr(config, "image_targets", None) != "soft":
        return 0
    return FLOAT32 * config.accumulate * images * model.config.grid**2 * model.config.image_vocabulary
