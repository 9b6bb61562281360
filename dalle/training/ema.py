"""An exponential moving average of the weights, which is what is validated, previewed and sampled from."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


@dataclass(frozen=True)
class EMAConfig:
    """How slowly the average follows; the defaults are the dVAE's (paper, Appendix A.2), the warm-up is ours."""

    decay: float = 0.999  # share of the old average that each update of it keeps; 0: the weights themselves
    every: int = 1  # training updates between two updates of the average (transformer: 25; Appendix B.2)
    warm_up: bool = True  # after n updates of it keep at most (1 + n) / (10 + n), lest the first weights linger

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"ema.decay={self.decay} must be at least 0 and below 1")
        if self.every < 1:
            raise ValueError(f"ema.every={self.every} must be at least 1")

    def decay_at(self, step: int) -> float:
        """The share kept by the update of the average that follows training update number `step`."""
        updates = step // self.every
        return min(self.decay, (1 + updates) / (10 + updates)) if self.warm_up else self.decay


class EMA:
    """`model` follows `source`, smoothly; it is in eval mode and without gradients."""

    def __init__(self, source: nn.Module, config: EMAConfig):
        self.config = config
        self.model = copy.deepcopy(source).eval().requires_grad_(False)
        self._averages: list[Tensor] = list(self.model.parameters())
        self._weights: list[Tensor] = list(source.parameters())
        # running statistics are copied; masks and index tables never change
        pairs = zip(self.model.buffers(), source.buffers(), strict=True)
        self._statistics = [pair for pair in pairs if pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the source, of which `step` training updates are done."""
        if step % self.config.every:
            return
        follow = get_ema_multi_avg_fn(self.config.decay_at(step))
        follow(self._averages, self._weights, 0)
        for average, latest in self._statistics:
            average.copy_(latest)
