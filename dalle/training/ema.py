"""Exponential moving average (EMA) of the weights, used for validation, previews and sampling."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dalle import distributed
from dalle.training.background_save import copy_model_to_host
from dalle.training.parameter_storage import shared_copy
from dalle.training.sharding import gather, local, reshard


@dataclass(frozen=True)
class EMAConfig:
    """EMA of the weights; the defaults are those of the paper's dVAE (Appendix A.2), the warmup is ours."""

    decay: float = 0.999  # share of the old average kept at each EMA update; 0: the weights themselves, no copy
    every: int = 1  # training updates per EMA update (transformer: 25; Appendix B.2)
    warmup: bool = True  # limit the decay to (1 + n) / (10 + n) after n EMA updates, to forget the initial weights

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"ema.decay={self.decay} must be at least 0 and below 1")
        if self.every < 1:
            raise ValueError(f"ema.every={self.every} must be at least 1")

    def decay_at(self, step: int) -> float:
        """Return the decay of the EMA update after training update number `step`."""
        updates = step // self.every
        return min(self.decay, (1 + updates) / (10 + updates)) if self.warmup else self.decay


def to_float32(model: nn.Module) -> nn.Module:
    """Convert the parameters of `model` to float32 in place, and return it."""
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    return model


def copy_without_weights(model: nn.Module) -> nn.Module:
    """Copy `model` with its parameters on the meta device, where they take no memory."""
    return copy.deepcopy(model, {id(parameter): nn.Parameter(parameter.to("meta")) for parameter in model.parameters()})


class EMA:
    """EMA of the weights of `source`.

    model: copy of `source` in eval mode, without gradients, in float32; with decay 0 it shares the memory of `source`.
    For a sharded `source`, pass a `copy_without_weights` made before sharding. It stays without weights, and the
    averages are sharded like the weights of `source`.
    """

    def __init__(self, source: nn.Module, config: EMAConfig, model: nn.Module | None = None):
        self.config = config
        self._source = source
        self._sharded = model is not None
        self._shared = config.decay == 0
        if model is None:
            model = shared_copy(source) if self._shared else to_float32(copy.deepcopy(source))
        self.model = model.eval().requires_grad_(False)
        self._weights: list[Tensor] = list(source.parameters())
        self._averages: list[Tensor] = list(self.model.parameters())
        if self._sharded:
            self._averages = self._weights if self._shared else [weight.detach().clone() for weight in self._weights]
        # floating-point buffers are running statistics, which are copied; masks and index tables never change
        pairs = zip(self.model.buffers(), source.buffers(), strict=True)
        self._statistics = [pair for pair in pairs if pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after training update number `step`, every `config.every` updates."""
        if step % self.config.every == 0 and not self._shared:
            self._update_averages(step)
        if step % self.config.every == 0 or self._shared:
            for average, current in self._statistics:
                average.copy_(current)

    def _update_averages(self, step: int) -> None:
        update_averages = get_ema_multi_avg_fn(self.config.decay_at(step))
        averages, weights = [*map(local, self._averages)], [*map(local, self._weights)]
        same_dtype = [
            (average, weight)
            for average, weight in zip(averages, weights, strict=True)
            if average.dtype == weight.dtype
        ]
        update_averages([average for average, _ in same_dtype], [weight for _, weight in same_dtype], 0)
        for average, weight in zip(averages, weights, strict=True):
            if average.dtype != weight.dtype:  # one at a time, since each needs a copy in float32
                update_averages([average], [weight.to(average.dtype)], 0)

    @contextmanager
    def average_parameters(self) -> Iterator[nn.Module]:
        """Context in which the sharded source has the averages as its weights, in eval mode; it yields the source.

        Averages and weights are swapped, so that units are gathered one at a time, as in training. Only calls of the
        model itself gather them: other methods and submodules must not be called.
        """
        training = self._source.training
        self._swap()
        try:
            yield self._source.eval()
        finally:
            self._swap()
            self._source.train(training)

    def whole_model(self) -> nn.Module:
        """Return the averaged model with whole weights. All ranks must call it, since it may gather shards."""
        return self._gathered() if self._sharded else self.model

    def main_process_model(self, copied: bool = False) -> nn.Module | None:
        """Return the averaged model with whole weights on the first rank, and None on others. All ranks must call it.

        Shards are gathered one weight at a time, in the host's memory.

        copied: return a copy in the host's memory, which does not change while training goes on.
        """
        is_main_process = distributed.is_main_process()
        if self._sharded:
            model = self._gathered(torch.device("cpu" if is_main_process else "meta"), copied)
            return model.cpu() if is_main_process else None
        if not is_main_process:
            return None
        return copy_model_to_host(self.model) if copied else self.model

    def _gathered(self, device: torch.device | None = None, copied: bool = False) -> nn.Module:
        """Return a copy of the model with the averages of all shards. Each is moved to `device`, None to keep it.

        copied: share no memory with the averages, as the shards of groups of one rank would.
        """
        model = copy.deepcopy(self.model)
        whole = {}
        for (name, parameter), average in zip(model.named_parameters(), self._averages, strict=True):
            whole[name] = gather(average.detach()).reshape(parameter.shape).to(device, copy=copied)
        model.load_state_dict(whole, strict=False, assign=True)  # not strict: buffers are there already
        return model

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange averages and weights of the sharded source, and their statistics, in place."""
        reshard(self._source)
        pairs = [] if self._shared else zip(map(local, self._averages), map(local, self._weights), strict=True)
        for average, weight in [*pairs, *self._statistics]:
            previous_weight = weight.clone()
            weight.copy_(average)
            average.copy_(previous_weight)

    def state_dict(self) -> dict[str, Tensor]:
        """Return averages and buffers by name, which share the memory of this average."""
        names = [name for name, _ in self.model.named_parameters()]
        averages = [average.detach() for average in self._averages]
        return {**self.model.state_dict(), **dict(zip(names, averages, strict=True))}
