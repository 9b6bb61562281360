"""Training state: everything needed to resume a run with identical results."""

import uuid
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dalle import checkpoint, distributed
from dalle.training import branches
from dalle.training.ema import EMA
from dalle.training.exchange import build_exchange
from dalle.training.meter import Meter
from dalle.training.optimizer import Plateau, build_optimizer
from dalle.training.precision import resolve
from dalle.training.stage import TrainingConfig


class TrainState:
    """State of a run. Data order and random numbers are functions of the step (`seeds.py`), so they are not stored."""

    def __init__(self, model: nn.Module, config: TrainingConfig, device: torch.device):
        """Initialise the state before the first update of `model`."""
        self.step = 0  # updates done
        self.watched = 0  # step of the last validation or preview
        self.seconds = 0.0  # spent in updates
        self.model = model
        self.average = EMA(model, config.ema)
        self.optimizer = build_optimizer(model, config.optimizer)
        self.plateau = Plateau(config.optimizer.plateau, device)
        self.precision, self.precision_reason = distributed.broadcast(resolve(config.precision, model, device))
        # after the EMA copy was made, which must not have hooks
        self.scales, self._hooks = branches.attach(model, config, self.precision, device)
        self.exchange = build_exchange(model, config.compression)
        self.meter = Meter(device)
        self.wandb_id = uuid.uuid4().hex[:8]
        self._config, self._device = config, device

    def save(self, folder: Path, identity: dict[str, Any]) -> None:
        """Write the state and `identity`, the run's settings. All ranks must call it; the first one writes."""
        scalars = {
            "identity": identity,
            "watched": self.watched,
            "seconds": self.seconds,
            "plateau": self.plateau.state(),
            "precision": self.precision,
            "scales": self.scales.state(),
            "meter": self.meter.state(),
            "wandb_id": self.wandb_id,
        }
        exchange = {f"exchange.{name}": tensor for name, tensor in self.exchange.state().items()}
        if distributed.is_first():
            checkpoint.save_state(folder, self.step, self._tensors() | exchange, scalars)
        distributed.barrier()

    def restore(self, folder: Path) -> None:
        """Load the newest state in `folder`, if there is one. Raises CheckpointError if it does not match the model."""
        saved = checkpoint.load_state(folder)
        if saved is None:
            return
        self.step, tensors, scalars = saved
        self.watched, self.seconds = scalars["watched"], scalars["seconds"]
        if self.precision != scalars["precision"]:
            self.precision, self.precision_reason = scalars["precision"], "as this run began"
        for hook in self._hooks:
            hook.remove()
        self.scales, self._hooks = branches.attach(self.model, self._config, self.precision, self._device)
        self.scales.restore(scalars["scales"])
        self.plateau.restore(scalars["plateau"])
        self.meter.restore(scalars["meter"])
        self.wandb_id = scalars["wandb_id"]
        path = folder / checkpoint.STATE
        for prefix, module in (("model", self.model), ("average", self.average.model)):
            weights = _under(prefix, tensors)
            checkpoint.check_tensors(module.state_dict(), weights, path)
            module.load_state_dict(weights)
        self._restore_moments(_under("optimizer", tensors))
        self.exchange.restore(_under("exchange", tensors))

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for moment, tensor in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{moment}.{name}"] = tensor
        return tensors

    def _restore_moments(self, tensors: dict[str, Tensor]) -> None:
        parameters = dict(self.model.named_parameters())
        for each, saved in tensors.items():
            moment, _, name = each.partition(".")
            parameter = parameters[name]
            # the fused kernels index memory directly: a moment needs the same strides as its parameter
            kept = torch.empty_like(parameter, dtype=saved.dtype, requires_grad=False) if saved.ndim else saved
            self.optimizer.state[parameter][moment] = kept.copy_(saved).to(parameter.device)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors with names that start with `prefix` and a dot, and remove it from the names."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
