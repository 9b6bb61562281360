"""Running means of training metrics, accumulated on the device, which synchronises only when they are read."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dalle import distributed


class TrainMetrics:
    """Means of metrics over updates and ranks since the last `compute_and_reset`, without skipped updates."""

    def __init__(self, device: torch.device):
        self.device = device
        self.names: list[str] = []
        self.totals = torch.zeros(0, device=device)
        self.count = torch.zeros((), device=device)  # updates in `totals`
        self.skipped = torch.zeros((), device=device)  # since training began
        self.consecutive_skipped = torch.zeros((), device=device)  # up to the latest update

    def update(self, metrics: Mapping[str, float | Tensor], finite: Tensor) -> None:
        """Add the `metrics` of one update if `finite` is 1; if it is 0, count the update as skipped.

        Metrics are scalars. Raises ValueError if their names change.
        """
        if not self.names:
            self.names, self.totals = list(metrics), self.totals.new_zeros(len(metrics))
        if list(metrics) != self.names:
            raise ValueError(f"metrics must keep their names: they were {self.names}, now {list(metrics)}")
        values = torch.stack([self._scalar(value) for value in metrics.values()])
        self.totals += torch.where(finite.bool(), values, 0.0)
        self.count += finite
        self.skipped += 1 - finite
        self.consecutive_skipped = (self.consecutive_skipped + 1) * (1 - finite)

    def compute_and_reset(self) -> dict[str, float]:
        """Return the means by name, NaN if all updates were skipped, and reset them. All ranks must call it."""
        means = (distributed.all_reduce_mean(self.totals) / self.count).tolist()
        self.totals.zero_()
        self.count.zero_()
        return dict(zip(self.names, means, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return the state for `load_state_dict`, JSON-serialisable. All ranks must call it."""
        totals = distributed.all_reduce_mean(self.totals).tolist()
        counts = [self.count.item(), self.skipped.item(), self.consecutive_skipped.item()]
        return {"names": self.names, "totals": totals, "counts": counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.names = list(state["names"])
        self.totals = torch.tensor(state["totals"], device=self.device)
        self.count, self.skipped, self.consecutive_skipped = torch.tensor(state["counts"], device=self.device)

    def _scalar(self, value: float | Tensor) -> Tensor:
        if isinstance(value, Tensor):
            return value.detach().float()
        return torch.full((), value, device=self.device)  # unlike torch.tensor, it does not synchronise with the GPU
