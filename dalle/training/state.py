"""Training state: everything needed to resume a run with identical results."""

import math
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from dalle import checkpoint, distributed
from dalle.checkpoint import CheckpointError
from dalle.training import state_files
from dalle.training.auto_precision import choose_precision
from dalle.training.background_save import copy_to_host, raised_together
from dalle.training.branch_hooks import attach_hooks
from dalle.training.ema import EMA, copy_without_weights
from dalle.training.gradient_reducer import build_gradient_reducer
from dalle.training.optimizer import ReduceOnPlateau, build_optimizer, set_product_precision
from dalle.training.parameter_storage import store_in_bfloat16
from dalle.training.sharding import copy_to, gather, is_sharded, mesh_of_backward, shard
from dalle.training.stage import StageConfig
from dalle.training.sync_batchnorm import convert_sync_batchnorm
from dalle.training.train_metrics import TrainMetrics

# entries of state.json that `TrainState.restore` needs
SCALARS = {"evaluated_step", "seconds", "plateau", "precision", "scaler", "metrics", "error_buffers", "wandb_id"}


def whole_tensor(_: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Allocate an unsharded tensor on the CPU, for `open_state`."""
    return torch.empty(shape, dtype=dtype)


@dataclass(frozen=True)
class SavedState:
    """A saved state, whose tensors are read when they are needed."""

    step: int
    scalars: dict[str, Any]
    names: list[str]  # of all tensors
    read: Callable[[Collection[str]], dict[str, Tensor]]  # of the tensors with these names; all ranks must call it


def open_state(
    folder: Path, allocate: Callable[[str, torch.Size, torch.dtype], Tensor] = whole_tensor
) -> SavedState | None:
    """Open the newest state in `folder`, whether one process or all ranks wrote it; None if there is none.

    allocate: allocate(name, shape, dtype) returns the tensor that a state of all ranks is read into. Into a DTensor,
        each rank reads its own shard only; by default tensors are whole.

    Raises CheckpointError, as does `read`, if the state is damaged.
    """
    state = state_files.newest_state(folder)
    if state is None or (state / state_files.STATE_TENSORS).exists():
        saved = state_files.load_state(folder)
        if saved is None:
            return None
        step, tensors, scalars = saved
        return SavedState(step, scalars, list(tensors), lambda names: {name: tensors[name] for name in names})
    from dalle.training import sharded_state

    scalars = state_files.read_scalars(folder)
    assert scalars is not None
    names = sharded_state.tensor_names(state)
    return SavedState(scalars.pop("step"), scalars, names, partial(sharded_state.read_tensors, state, allocate))


class TrainState:
    """State of a run. Data order and random numbers are functions of the step (`seeds.py`), so they are not stored."""

    def __init__(self, model: nn.Module, config: StageConfig, device: torch.device, mesh: DeviceMesh | None = None):
        """Initialise the state before the first update of `model`, which is sharded over `mesh` if there is one."""
        self.step = 0  # updates done
        self.evaluated_step = 0  # last step after which it was decided whether to validate and preview
        self.seconds = 0.0  # spent in updates
        self.best_loss = math.inf  # lowest validation loss of a checkpoint in best/
        self.model = model
        if mesh is not None:
            config.check_sharding()
        if config.parameters == "bfloat16":
            store_in_bfloat16(model)
        compressed = config.compression.rank > 0  # gradients are reduced after the backward pass
        # copied before the model is sharded: sharded modules cannot be copied
        unsharded = None if mesh is None else copy_without_weights(model)
        if distributed.is_distributed():
            convert_sync_batchnorm(model)
        if mesh is None:
            # the model to be called in training
            self.parallel_model = distributed.wrap_ddp(model, average_gradients=not compressed)
        else:
            self.parallel_model = shard(model, mesh_of_backward(mesh, compressed))
        self.ema = EMA(model, config.ema, unsharded)
        self.plateau = ReduceOnPlateau(config.optimizer.plateau, device)
        # bfloat16 weights need matrix products in bfloat16
        configured_precision = "bfloat16" if config.parameters == "bfloat16" else config.precision
        precision = choose_precision(configured_precision, model, device)
        self.precision, self.precision_reason = distributed.broadcast_object(precision)
        self.optimizer = build_optimizer(model, config.optimizer, self.precision)
        # after the EMA copy was made, which must not have hooks
        self.scaler, self._hooks = attach_hooks(model, config, self.precision, device)
        self.reducer = build_gradient_reducer(model, config.compression, mesh)
        self.metrics = TrainMetrics(device)
        self.wandb_id = uuid.uuid4().hex[:8]
        self._config, self._device = config, device

    def prepare_save(
        self, folder: Path, run_config: dict[str, Any], copied: bool = False, group: ProcessGroup | None = None
    ) -> Callable[[], None]:
        """Return a function that writes the present state and `run_config`. All ranks must call both.

        The first rank writes, or each rank its shards and error buffers. The state itself does not change.

        copied: write a copy of the state, in the host's memory, so that it may change before the function ends.
        group: process group over which ranks write together; None: the default group.
        """
        scalars = {
            "identity": run_config,
            "evaluated_step": self.evaluated_step,
            "seconds": self.seconds,
            "plateau": self.plateau.state_dict(),
            "precision": self.precision,
            "scaler": self.scaler.state_dict(),
            "metrics": self.metrics.state_dict(),
            "error_buffers": self.reducer.error_buffers,
            "wandb_id": self.wandb_id,
        }
        if self.best_loss < math.inf:
            scalars["best_loss"] = self.best_loss
        sharded, step = is_sharded(self.model), self.step
        written_by_all = sharded or self.reducer.error_buffers > 1
        tensors = self._tensors() if sharded or distributed.is_main_process() else {}
        tensors |= {f"reducer.{name}": tensor for name, tensor in self.reducer.state_dict().items()}
        if copied:
            tensors = {name: copy_to_host(tensor) for name, tensor in tensors.items()}

        def write() -> None:
            if written_by_all:
                from dalle.training import sharded_state  # torch.distributed.checkpoint takes long to import

                sharded_state.save_state(folder, step, tensors, scalars, group)
            else:
                with raised_together(group):
                    if distributed.is_main_process():
                        state_files.save_state(folder, step, tensors, scalars)

        return write

    def restore(self, folder: Path) -> None:
        """Load the newest state in `folder`, if there is one.

        Raises CheckpointError if it does not match the model, or lacks an entry.
        """
        saved = open_state(folder, self._allocator())
        if saved is None:
            return
        if missing := SCALARS - saved.scalars.keys():
            raise CheckpointError(
                f"{folder / state_files.STATE} lacks {', '.join(sorted(missing))}: it was saved by an incompatible "
                "version. Start a new run with run=<name>, and with init= to keep the weights of this one"
            )

        def read(prefix: str) -> dict[str, Tensor]:
            """Read the tensors with names that start with `prefix` and a dot, and remove it from the names."""
            start = f"{prefix}."
            tensors = saved.read([name for name in saved.names if name.startswith(start)])
            return {name.removeprefix(start): tensor for name, tensor in tensors.items()}

        self.step, scalars = saved.step, saved.scalars
        self.evaluated_step, self.seconds = scalars["evaluated_step"], scalars["seconds"]
        if self.precision != scalars["precision"]:
            self.precision, self.precision_reason = scalars["precision"], "as in the run so far"
            set_product_precision(self.optimizer, self.precision)
        for hook in self._hooks:
            hook.remove()
        self.scaler, self._hooks = attach_hooks(self.model, self._config, self.precision, self._device)
        self.scaler.load_state_dict(scalars["scaler"])
        self.plateau.load_state_dict(scalars["plateau"])
        self.metrics.load_state_dict(scalars["metrics"])
        self.wandb_id = scalars["wandb_id"]
        self.best_loss = scalars.get("best_loss", math.inf)
        path = folder / state_files.STATE
        for prefix, module in (("ema", self.ema), ("model", self.model)):  # which may share memory
            weights = read(prefix)
            checkpoint.check_tensors(self.ema.model.state_dict(), weights, path)
            for name, tensor in module.state_dict().items():
                copy_to(tensor, weights[name])
        self._restore_moments(read("optimizer"))
        self.reducer.load_state_dict(lambda kind: read(f"reducer.{kind}"), scalars["error_buffers"])

    def _tensors(self) -> dict[str, Tensor]:
        """Return all tensors but the reducer's, by the same names and with the same shapes for any kind of training."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for moment, tensor in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{moment}.{name}"] = tensor
        scalars = {name for name, average in self.ema.model.named_parameters() if not average.ndim}
        # scalars may be sharded as vectors of one number
        return {
            key: gather(tensor).reshape(()) if _parameter_name(key) in scalars else tensor
            for key, tensor in tensors.items()
        }

    def _allocator(self) -> Callable[[str, torch.Size, torch.dtype], Tensor]:
        """Return the allocator of tensors for `open_state`: shards of those of sharded parameters, others whole."""
        parameters = dict(self.model.named_parameters()) if is_sharded(self.model) else {}

        def allocate(key: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
            parameter = parameters.get(_parameter_name(key))
            if parameter is None or parameter.shape != shape:
                return whole_tensor(key, shape, dtype)
            return torch.empty_like(parameter, dtype=dtype, requires_grad=False)

        return allocate

    def _restore_moments(self, tensors: dict[str, Tensor]) -> None:
        parameters = dict(self.model.named_parameters())
        for key, saved in tensors.items():
            moment, _, name = key.partition(".")
            parameter = parameters[name]
            if moment == "step":
                self.optimizer.state[parameter][moment] = saved.to(parameter.device)
                continue
            # the fused kernels index memory directly: a moment needs the same strides as its parameter
            tensor = torch.empty_like(parameter, dtype=saved.dtype, requires_grad=False)
            copy_to(tensor, saved)
            self.optimizer.state[parameter][moment] = tensor


def _parameter_name(key: str) -> str:
    """Return the name of the parameter in the key of a saved tensor, such as optimizer.exp_avg.norm.weight."""
    kind, _, rest = key.partition(".")
    return rest if kind in ("model", "ema") else rest.partition(".")[2]
