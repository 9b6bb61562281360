"""Training state: everything needed to resume a run with identical results."""

import uuid
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dalle import checkpoint, distributed
from dalle.training.auto_precision import choose_precision
from dalle.training.branch_hooks import attach_hooks
from dalle.training.ema import EMA
from dalle.training.gradient_reducer import build_gradient_reducer
from dalle.training.optimizer import ReduceOnPlateau, build_optimizer
from dalle.training.stage import TrainingConfig
from dalle.training.train_metrics import TrainMetrics


class TrainState:
    """State of a run. Data order and random numbers are functions of the step (`seeds.py`), so they are not stored."""

    def __init__(self, model: nn.Module, config: TrainingConfig, device: torch.device):
        """Initialise the state before the first update of `model`."""
        self.step = 0  # updates done
        self.validated_step = 0  # step of the last validation or preview
        self.seconds = 0.0  # spent in updates
        self.model = model
        self.ema = EMA(model, config.ema)
        self.optimizer = build_optimizer(model, config.optimizer)
        self.plateau = ReduceOnPlateau(config.optimizer.plateau, device)
        precision = choose_precision(config.precision, model, device)
        self.precision, self.precision_reason = distributed.broadcast_object(precision)
        # after the EMA copy was made, which must not have hooks
        self.scaler, self._hooks = attach_hooks(model, config, self.precision, device)
        self.reducer = build_gradient_reducer(model, config.compression)
        self.metrics = TrainMetrics(device)
        self.wandb_id = uuid.uuid4().hex[:8]
        self._config, self._device = config, device

    def save(self, folder: Path, run_config: dict[str, Any]) -> None:
        """Write the state and `run_config`. All ranks must call it; the first one writes."""
        scalars = {
            "identity": run_config,
            "watched": self.validated_step,
            "seconds": self.seconds,
            "plateau": self.plateau.state_dict(),
            "precision": self.precision,
            "scales": self.scaler.state_dict(),
            "meter": self.metrics.state_dict(),
            "wandb_id": self.wandb_id,
        }
        reducer = {f"exchange.{name}": tensor for name, tensor in self.reducer.state_dict().items()}
        if distributed.is_main_process():
            checkpoint.save_state(folder, self.step, self._tensors() | reducer, scalars)
        distributed.barrier()

    def restore(self, folder: Path) -> None:
        """Load the newest state in `folder`, if there is one. Raises CheckpointError if it does not match the model."""
        saved = checkpoint.load_state(folder)
        if saved is None:
            return
        self.step, tensors, scalars = saved
        self.validated_step, self.seconds = scalars["watched"], scalars["seconds"]
        if self.precision != scalars["precision"]:
            self.precision, self.precision_reason = scalars["precision"], "as in the run so far"
        for hook in self._hooks:
            hook.remove()
        self.scaler, self._hooks = attach_hooks(self.model, self._config, self.precision, self._device)
        self.scaler.load_state_dict(scalars["scales"])
        self.plateau.load_state_dict(scalars["plateau"])
        self.metrics.load_state_dict(scalars["meter"])
        self.wandb_id = scalars["wandb_id"]
        path = folder / checkpoint.STATE
        for prefix, module in (("model", self.model), ("average", self.ema.model)):
            weights = _with_prefix(prefix, tensors)
            checkpoint.check_tensors(module.state_dict(), weights, path)
            module.load_state_dict(weights)
        self._restore_moments(_with_prefix("optimizer", tensors))
        self.reducer.load_state_dict(_with_prefix("exchange", tensors))

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.ema.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for moment, tensor in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{moment}.{name}"] = tensor
        return tensors

    def _restore_moments(self, tensors: dict[str, Tensor]) -> None:
        parameters = dict(self.model.named_parameters())
        for key, saved in tensors.items():
            moment, _, name = key.partition(".")
            parameter = parameters[name]
            # the fused kernels index memory directly: a moment needs the same strides as its parameter
            moment_tensor = torch.empty_like(parameter, dtype=saved.dtype, requires_grad=False) if saved.ndim else saved
            self.optimizer.state[parameter][moment] = moment_tensor.copy_(saved).to(parameter.device)


def _with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors with names that start with `prefix` and a dot, and remove it from the names."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
