"""Means of what updates report, added up on the device, so that it is waited for only where they are read."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dalle import distributed


class Meter:
    """Means since the last reading, over ranks too, of the updates that were not skipped."""

    def __init__(self, device: torch.device):
        self.device = device
        self.names: list[str] = []
        self.totals = torch.zeros(0, device=device)
        self.count = torch.zeros((), device=device)  # updates in `totals`
        self.skipped = torch.zeros((), device=device)  # since training began
        self.skipped_in_a_row = torch.zeros((), device=device)  # up to the latest update

    def update(self, metrics: Mapping[str, float | Tensor], counts: Tensor) -> None:
        """Take in the `metrics` of one update, scalars under the same names each time, if `counts` is 1."""
        if not self.names:
            self.names, self.totals = list(metrics), self.totals.new_zeros(len(metrics))
        if list(metrics) != self.names:
            raise ValueError(f"metrics must keep their names: they were {self.names}, now {list(metrics)}")
        values = torch.stack([self._scalar(value) for value in metrics.values()])
        self.totals += torch.where(counts.bool(), values, 0.0)
        self.count += counts
        self.skipped += 1 - counts
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * (1 - counts)

    def read(self) -> dict[str, float]:
        """The means by name, NaN if all updates were skipped; begins the next reading. All ranks call it."""
        means = (distributed.mean(self.totals) / self.count).tolist()
        self.totals.zero_()
        self.count.zero_()
        return dict(zip(self.names, means, strict=True))

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, as JSON can hold it. All ranks call it."""
        totals = distributed.mean(self.totals).tolist()
        counts = [self.count.item(), self.skipped.item(), self.skipped_in_a_row.item()]
        return {"names": self.names, "totals": totals, "counts": counts}

    def restore(self, state: dict[str, Any]) -> None:
        self.names = list(state["names"])
        self.totals = torch.tensor(state["totals"], device=self.device)
        self.count, self.skipped, self.skipped_in_a_row = torch.tensor(state["counts"], device=self.device)

    def _scalar(self, value: float | Tensor) -> Tensor:
        if isinstance(value, Tensor):
            return value.detach().float()
        return torch.full((), value, device=self.device)  # unlike torch.tensor, it does not wait for a GPU
