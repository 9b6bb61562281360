"""Memory and FLOPs of one micro-batch, counted by running forward pass, loss and backward pass on fake tensors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dalle.models.kernels import use_kernels_of
from dalle.models.transformer.model import Transformer
from dalle.models.transformer.sparse_attention import use_dense_masks
from dalle.precision import autocast
from dalle.training.branch_hooks import attach_hooks
from dalle.training.flops import flop_counter
from dalle.training.parameter_storage import store_in_bfloat16
from dalle.training.peak_memory import PeakMemory
from dalle.training.stage import StageConfig

FLOAT32 = 4  # bytes
CPU = torch.device("cpu")


class MicroBatchCost(NamedTuple):
    """Memory and FLOPs of a micro-batch."""

    peak_bytes: int  # most at a time of activations, logits and temporary tensors, in the forward and backward pass
    flops: int  # of matrix products, convolutions and attention in the forward pass and the loss


def micro_batch_cost(
    build: Callable[[], nn.Module],
    config: Any,
    precision: str,
    images: int,
    image_size: int,
    ranks: int,
    device_type: str = "cuda",
) -> MicroBatchCost:
    """Count what a micro-batch of `images` images needs and computes, with the hooks that `config` asks for.

    Gradients of weights are freed as soon as they are complete: those that are kept are not counted, and neither is the
    micro-batch itself.

    build: builds the model; it is called on the meta device.
    config: of the stage, with the sizes of `model_for`.
    image_size: side of the images of the dVAE and the decoder in pixels; other models' configs have it.
    ranks: whose pairs CLIP's loss compares.
    device_type: type of device that is planned, "cuda" or "cpu". The fake tensors are a CPU's, since torch has no fake
        tensors of a GPU where it is built for CPUs alone.
    """
    with torch.device("meta"):
        model = use_dense_masks(build())
    if config.parameters == "bfloat16":
        store_in_bfloat16(model)
    with use_kernels_of(device_type), FakeTensorMode(allow_non_fake_inputs=True):
        model = model.to_empty(device=CPU)
        attach_hooks(model, config, precision, CPU)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(free_gradient)
        batch = config.example_batch(images, image_size)
        with PeakMemory([*model.parameters(), *model.buffers(), *batch]) as memory:
            with flop_counter() as counter, autocast(precision, CPU):
                loss = config.example_loss(model, batch, ranks)
            loss.backward()
    return MicroBatchCost(memory.peak, counter.get_total_flops())


def free_gradient(parameter: Tensor) -> None:
    """Free the gradient of a parameter."""
    parameter.grad = None


def targets_bytes(model: nn.Module, config: StageConfig, images: int) -> int:
    """Return the bytes of soft targets, which all micro-batches of an update have at once; 0 for codes as targets."""
    if not isinstance(model, Transformer) or getattr(config, "image_targets", None) != "soft":
        return 0
    return FLOAT32 * config.accumulate * images * model.config.grid**2 * model.config.image_vocabulary
