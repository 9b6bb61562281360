"""Optimizer and learning rate: linear warmup, times a schedule, times a factor reduced at plateaus of the loss."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dalle.training.muon import Muon
from dalle.training.paper_adam import PaperAdamW
from dalle.training.schedules import Schedule
from dalle.training.weight_matrices import weight_matrices

KINDS = ("adamw", "muon")
MOMENTS = ("float32", "paper16")


@dataclass(frozen=True)
class PlateauConfig:
    """Reduction of the learning rate by half at a plateau of the training loss (transformer: five; paper, App. B.2).

    The paper does not define a plateau. Here, as in torch's ReduceLROnPlateau, losses are averaged over windows of
    `window` updates. A window is an improvement if its mean is below the reference by more than `threshold` times the
    reference. The learning rate is halved after more than `patience` windows in a row without one. The reference is
    the mean of the last improvement; after a reduction it is the first mean at the new learning rate. If the loss falls
    faster after each reduction, these defaults allow five within the paper's 430,000 updates.
    """

    max_reductions: int = 0  # maximum number of reductions; 0: none
    window: int = 5_000  # updates over which the loss is averaged
    threshold: float = 0.005  # relative improvement of the loss that counts
    patience: int = 3  # windows without improvement to wait for

    def __post_init__(self) -> None:
        if self.max_reductions < 0 or self.window < 1 or self.patience < 0 or self.threshold < 0:
            raise ValueError(
                f"optimizer.plateau needs max_reductions >= 0, window >= 1, patience >= 0 and threshold >= 0, not "
                f"{self.max_reductions}, {self.window}, {self.patience} and {self.threshold}"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon; the defaults are those of the paper's dVAE (Appendix A.2)."""

    learning_rate: Schedule = field(default_factory=lambda: Schedule("cosine", 1e-4, 1.25e-6, 1_200_000))
    warmup_steps: int = 0  # updates of linear learning-rate warmup (transformer: 5,000; App. B.2)
    plateau: PlateauConfig = field(default_factory=PlateauConfig)
    betas: tuple[float, float] = (0.9, 0.999)  # decay rates of the running mean and variance (transformer: 0.9, 0.96)
    eps: float = 1e-8  # added to the square root of the variance
    weight_decay: float = 1e-4  # decoupled (transformer: 0.045; CLIP: 0.2)
    # parameters with weight decay: all | matrices: not gains, biases and the temperature (CLIP paper, Sec. 2.5)
    decay: str = "all"
    variance_clip: float | None = None  # maximum of the running variance (transformer: 5; App. B.2)
    moments: str = "float32"  # storage of mean and variance: float32 | paper16: 1-6-9 and 0-6-10 for matrices
    kind: str = "adamw"  # "adamw", as in the paper | "muon": orthogonalised updates of matrices, AdamW for the rest

    def __post_init__(self) -> None:
        rates = (self.learning_rate.start, self.learning_rate.end)
        if not all(0 <= rate < math.inf for rate in rates):
            raise ValueError(f"optimizer.learning_rate from {rates[0]} to {rates[1]} must be finite and at least 0")
        for name in ("warmup_steps", "eps", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must be finite and at least 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas={list(self.betas)} must be two numbers of at least 0 and below 1")
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
        """Return the learning rate after `step` updates, without the reductions at plateaus."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return warmup * self.learning_rate.value(step)


class AdamW(torch.optim.AdamW):
    """torch's AdamW with a step that can be skipped by a flag on the device, without synchronising."""

    def step_if_finite(self, finite: Tensor, learning_rate: float, seeds: tuple[int, ...] = ()) -> None:
        """Step with `learning_rate` if the scalar `finite` is 1; if it is 0, change neither weights nor moments.

        seeds: not used; `PaperAdamW` needs them for stochastic rounding.
        """
        for group in self.param_groups:
            group["lr"] = learning_rate
        self.found_inf = 1 - finite  # read by the fused kernels, as with torch's GradScaler
        self.step()


def uses_fused_adamw(config: OptimizerConfig) -> bool:
    """Return True if torch's fused AdamW has all options of `config`."""
    return config.kind == "adamw" and config.variance_clip is None and config.moments == "float32"


def build_optimizer(model: nn.Module, config: OptimizerConfig, precision: str = "float32") -> AdamW | PaperAdamW:
    """Build the optimizer of the trainable parameters of `model`, which is trained in `precision`.

    AdamW is torch's fused version, three times as fast on a CPU as ours, unless `config` needs options it lacks, or
    weights are bfloat16.
    """
    matrices = weight_matrices(model).values()
    # weights that Muon updates -> number of matrices stacked in each
    muon_parts = {matrix.weight: matrix.parts for matrix in matrices} if config.kind == "muon" else {}
    others = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter not in muon_parts]
    decayed = [parameter for parameter in others if config.decay == "all" or parameter.ndim >= 2]
    not_decayed = [parameter for parameter in others if config.decay != "all" and parameter.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": not_decayed, "weight_decay": 0.0}]
    for parts in sorted(set(muon_parts.values())):
        weights = [weight for weight in muon_parts if muon_parts[weight] == parts]
        groups.append({"params": weights, "orthogonal_parts": parts})
    groups = [group for group in groups if group["params"]]
    beta1, beta2 = config.betas
    options: dict[str, Any] = {"betas": (beta1, beta2), "eps": config.eps, "weight_decay": config.weight_decay}
    bfloat16 = any(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    if uses_fused_adamw(config) and not bfloat16:
        return AdamW(groups, lr=config.learning_rate_at(0), fused=True, **options)
    sixteen_bit = [matrix.weight for matrix in matrices] if config.moments == "paper16" else ()
    optimizer_class = Muon if config.kind == "muon" else PaperAdamW
    optimizer = optimizer_class(groups, variance_clip=config.variance_clip, sixteen_bit=sixteen_bit, **options)
    set_product_precision(optimizer, precision)
    return optimizer


def set_product_precision(optimizer: torch.optim.Optimizer, precision: str) -> None:
    """Compute Muon's products on a CPU as the forward pass in `precision`; on a GPU they are in bfloat16.

    A run that is resumed on a CPU keeps the precision that it began with, also where it would choose another.
    """
    for group in optimizer.param_groups:
        if "orthogonal_parts" in group:
            group["half_products"] = precision == "bfloat16"


class ReduceOnPlateau:
    """Factor of the learning rate, halved at each plateau of the training loss.

    Unlike torch's ReduceLROnPlateau, it reads the loss from the device once per window only."""

    def __init__(self, config: PlateauConfig, device: torch.device):
        self.config = config
        self.reductions = 0
        self.reference: float | None = None  # mean loss of the last window that was an improvement
        self.bad_windows = 0  # windows since the last improvement
        self.total = torch.zeros((), device=device)  # sum of the losses in this window
        self.count = torch.zeros((), device=device)  # updates in this window that were not skipped

    @property
    def factor(self) -> float:
        return 0.5**self.reductions

    def update(self, loss: Tensor, finite: Tensor, step: int) -> bool:
        """Add the `loss` of update number `step` if `finite` is 1; returns True if the learning rate was reduced.

        Synchronises with the device once per window.
        """
        if self.reductions == self.config.max_reductions:
            return False
        self.total += torch.where(finite.bool(), loss.detach(), 0.0)
        self.count += finite
        if step % self.config.window or not self.count:
            return False
        mean = (self.total / self.count).item()
        self.total.zero_()
        self.count.zero_()
        if self.reference is None or mean < self.reference - self.config.threshold * abs(self.reference):
            self.reference, self.bad_windows = mean, 0
            return False
        self.bad_windows += 1
        if self.bad_windows <= self.config.patience:
            return False
        self.reductions += 1
        self.reference, self.bad_windows = None, 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the state for `load_state_dict`, JSON-serialisable."""
        total, count = self.total.item(), self.count.item()
        return {
            "reductions": self.reductions,
            "reference": self.reference,
            "bad_windows": self.bad_windows,
            "total": total,
            "count": count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reductions, self.bad_windows = state["reductions"], state["bad_windows"]
        self.reference = state["reference"]
        self.total.fill_(state["total"])
        self.count.fill_(state["count"])
