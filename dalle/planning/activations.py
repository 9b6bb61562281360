"""Memory and FLOPs of one micro-batch: its forward pass, loss and backward pass run on fake tensors, without data."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dalle.models.transformer.model import Transformer
from dalle.models.transformer.sparse_attention import use_dense_masks
from dalle.precision import autocast
from dalle.training.branch_hooks import attach_hooks
from dalle.training.flops import flop_counter
from dalle.training.parameter_storage import store_in_bfloat16
from dalle.training.stage import StageConfig

FLOAT32 = 4  # bytes
CPU = torch.device("cpu")


class MicroBatchCost(NamedTuple):
    """Memory and FLOPs of a micro-batch."""

    peak_bytes: int  # most at a time of activations, logits and temporary tensors, in the forward and backward pass
    flops: int  # of matrix products, convolutions and attention in the forward pass and the loss


def micro_batch_cost(
    build: Callable[[], nn.Module], config: Any, precision: str, images: int, image_size: int, ranks: int
) -> MicroBatchCost:
    """Count what a micro-batch of `images` images needs and computes on a GPU, with the hooks that `config` asks for.

    Gradients of weights are freed as soon as they are complete: those that are kept are not counted, and neither is the
    micro-batch itself.

    build: builds the model; it is called on the meta device.
    config: of the stage, with the sizes of `model_for`.
    image_size: side of the images of the dVAE and the decoder in pixels; other models' configs have it.
    ranks: whose pairs CLIP's loss compares.
    """
    with torch.device("meta"):
        model = use_dense_masks(build())  # as on a GPU, though the fake tensors are a CPU's
    if config.parameters == "bfloat16":
        store_in_bfloat16(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
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


class PeakMemory(TorchDispatchMode):
    """Context that counts the bytes of tensors that operations return, until these are freed. They may be fake.

    Memory that an operation uses by itself and frees is not counted.
    """

    def __init__(self, existing: Iterable[Tensor] = ()):
        """existing: tensors that are not counted."""
        super().__init__()
        self.current = self.peak = 0
        self._storages = {tensor.untyped_storage()._cdata: 0 for tensor in existing}  # bytes by storage

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.nonzero.default:  # of the positions with a target: the most is all of them
            result = args[0].new_empty(args[0].numel(), args[0].ndim, dtype=torch.int64)
        else:
            result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        """Count a storage that is not counted yet."""
        if storage._cdata not in self._storages:
            self._storages[storage._cdata] = storage.nbytes()
            self.current += storage.nbytes()
            self.peak = max(self.peak, self.current)
            weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, storage: int) -> None:
        self.current -= self._storages.pop(storage)


def targets_bytes(model: nn.Module, config: StageConfig, images: int) -> int:
    """Return the bytes of soft targets, which all micro-batches of an update have at once; 0 for codes as targets."""
    if not isinstance(model, Transformer) or getattr(config, "image_targets", None) != "soft":
        return 0
    return FLOAT32 * config.accumulate * images * model.config.grid**2 * model.config.image_vocabulary
