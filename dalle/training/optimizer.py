"""Optimizer and learning rate: linear warmup, times a schedule, times a factor reduced at plateaus of the loss."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dalle.training.matrices import matrices
from dalle.training.muon import Muon
from dalle.training.paper_adam import PaperAdamW
from dalle.training.schedules import Schedule

KINDS = ("adamw", "muon")
MOMENTS = ("float32", "paper16")


@dataclass(frozen=True)
class PlateauConfig:
    """Halving of the learning rate when the training loss stops falling (transformer: five times; paper, App. B.2).

    The paper does not define a plateau. Here, as in torch's ReduceLROnPlateau, losses are averaged over windows of
    `window` updates. A window is an improvement if its mean is below the reference by more than `threshold` times the
    reference. The learning rate is halved after more than `patience` windows in a row without one. The reference is
    the mean of the last improvement; after a halving it is the first mean at the new learning rate. If the loss falls
    faster after each halving, these defaults allow five halvings within the paper's 430,000 updates.
    """

    halvings: int = 0  # maximum number; 0: never
    window: int = 5_000  # updates over which the loss is averaged
    threshold: float = 0.005  # relative improvement of the loss that counts
    patience: int = 3  # windows without improvement to wait for

    def __post_init__(self) -> None:
        if self.halvings < 0 or self.window < 1 or self.patience < 0:
            raise ValueError(
                f"a plateau needs halvings >= 0, window >= 1 and patience >= 0, not {self.halvings}, {self.window} "
                f"and {self.patience}"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon; the defaults are those of the paper's dVAE (Appendix A.2)."""

    learning_rate: Schedule = field(default_factory=lambda: Schedule("cosine", 1e-4, 1.25e-6, 1_200_000))
    warm_up: int = 0  # updates of linear learning-rate warmup (transformer: 5,000; App. B.2)
    plateau: PlateauConfig = field(default_factory=PlateauConfig)
    betas: tuple[float, float] = (0.9, 0.999)  # decay rates of the running mean and variance (transformer: 0.9, 0.96)
    eps: float = 1e-8  # added to the square root of the variance
    weight_decay: float = 1e-4  # decoupled (transformer: 0.045; CLIP: 0.2)
    decay: str = "all"  # decayed: "all" parameters | "matrices": no gains, biases, temperature (CLIP paper, Sec. 2.5)
    variance_clip: float | None = None  # maximum of the running variance (transformer: 5; App. B.2)
    moments: str = "float32"  # storage of mean and variance: float32 | paper16: 1-6-9 and 0-6-10 for matrices
    kind: str = "adamw"  # "adamw", as in the paper | "muon": newton_schulz updates of matrices, AdamW for the rest

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"optimizer.kind={self.kind!r} is unknown; choose one of {', '.join(KINDS)}")
        if self.decay not in ("all", "matrices"):
            raise ValueError(f"optimizer.decay={self.decay!r} is unknown; choose 'all' or 'matrices'")
        if self.moments not in MOMENTS:
            raise ValueError(f"optimizer.moments={self.moments!r} is unknown; choose one of {', '.join(MOMENTS)}")
        if self.kind == "muon" and self.moments == "paper16":
            raise ValueError("optimizer.kind=muon has no variance of matrices to keep in 16 bits: use moments=float32")
        if self.variance_clip is not None and self.variance_clip <= 0:
            raise ValueError(
                f"optimizer.variance_clip={self.variance_clip} must be above 0; null leaves the variance alone"
            )

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate after `step` updates, without plateau halvings."""
        warm = min(1.0, (step + 1) / self.warm_up) if self.warm_up else 1.0
        return warm * self.learning_rate.value(step)


class AdamW(torch.optim.AdamW):
    """torch's AdamW with a step that can be skipped by a flag on the device, without synchronising."""

    def step_if_finite(self, finite: Tensor, learning_rate: float) -> None:
        """Step if `finite` is 1, else leave weights and moments unchanged."""
        for group in self.param_groups:
            group["lr"] = learning_rate
        self.found_inf = 1 - finite  # read by the fused kernels, as with torch's GradScaler
        self.step()


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW | PaperAdamW:
    """Build the optimizer of the trainable parameters of `model`.

    AdamW is torch's fused version, three times as fast on a CPU as ours, unless `config` needs options it lacks.
    """
    large = matrices(model).values()
    turned = {matrix.weight: matrix.parts for matrix in large} if config.kind == "muon" else {}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter not in turned]
    decayed = [parameter for parameter in trained if config.decay == "all" or parameter.ndim >= 2]
    spared = [parameter for parameter in trained if config.decay != "all" and parameter.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
    for parts in sorted(set(turned.values())):
        groups.append({"params": [each for each in turned if turned[each] == parts], "orthogonal_parts": parts})
    groups = [group for group in groups if group["params"]]
    beta1, beta2 = config.betas
    numbers: dict[str, Any] = {"betas": (beta1, beta2), "eps": config.eps, "weight_decay": config.weight_decay}
    if config.kind == "adamw" and config.variance_clip is None and config.moments == "float32":
        return AdamW(groups, lr=config.learning_rate_at(0), fused=True, **numbers)
    narrow = [matrix.weight for matrix in large] if config.moments == "paper16" else ()
    ours = Muon if config.kind == "muon" else PaperAdamW
    return ours(groups, variance_clip=config.variance_clip, narrow=narrow, **numbers)


class Plateau:
    """Plateau detection on the training loss, with the resulting factor of the learning rate."""

    def __init__(self, config: PlateauConfig, device: torch.device):
        self.config = config
        self.halvings = 0
        self.reference: float | None = None  # mean loss of the last window that was an improvement
        self.waited = 0  # windows since the last improvement
        self.total = torch.zeros((), device=device)  # sum of the losses in this window
        self.count = torch.zeros((), device=device)  # updates in this window that were not skipped

    @property
    def factor(self) -> float:
        return 0.5**self.halvings

    def update(self, loss: Tensor, counts: Tensor, step: int) -> bool:
        """Add the `loss` of update number `step` if `counts` is 1; returns True if the learning rate was halved.

        Synchronises with the device once per window.
        """
        if self.halvings == self.config.halvings:
            return False
        self.total += torch.where(counts.bool(), loss.detach(), 0.0)
        self.count += counts
        if step % self.config.window or not self.count:
            return False
        mean = (self.total / self.count).item()
        self.total.zero_()
        self.count.zero_()
        if self.reference is None or mean < self.reference - self.config.threshold * abs(self.reference):
            self.reference, self.waited = mean, 0
            return False
        self.waited += 1
        if self.waited <= self.config.patience:
            return False
        self.halvings += 1
        self.reference, self.waited = None, 0
        return True

    def state(self) -> dict[str, Any]:
        """Return the state for `restore`, JSON-serialisable."""
        total, count = self.total.item(), self.count.item()
        readings = {"reference": self.reference, "waited": self.waited, "total": total, "count": count}
        return {"halvings": self.halvings, **readings}

    def restore(self, state: dict[str, Any]) -> None:
        self.halvings, self.reference, self.waited = state["halvings"], state["reference"], state["waited"]
        self.total.fill_(state["total"])
        self.count.fill_(state["count"])
