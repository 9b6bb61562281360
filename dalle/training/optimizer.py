"""The optimizer and its step size: warm-up, times a schedule, times what plateaus of the loss have left of it."""

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
    """Halve the step size when the training loss stops falling (transformer: five times; paper, App. B.2).

    The paper does not say what a plateau is. Here, as in torch's ReduceLROnPlateau: the mean loss of `window` updates
    was not below the reference by more than `threshold` of it for more than `patience` windows in a row. The reference
    is the last such mean that was; after each halving it is the first mean at the new step size. With these values
    losses that fall faster once the step size does are halved five times within the paper's 430,000 updates.
    """

    halvings: int = 0  # at most; 0: never
    window: int = 5_000  # updates whose mean loss is one reading
    threshold: float = 0.005  # relative improvement that counts as falling
    patience: int = 3  # windows without improvement that are waited for

    def __post_init__(self) -> None:
        if self.halvings < 0 or self.window < 1 or self.patience < 0:
            raise ValueError(
                f"a plateau needs halvings >= 0, window >= 1 and patience >= 0, not {self.halvings}, {self.window} "
                f"and {self.patience}"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW; the defaults are the dVAE's (paper, Appendix A.2)."""

    learning_rate: Schedule = field(default_factory=lambda: Schedule("cosine", 1e-4, 1.25e-6, 1_200_000))
    warm_up: int = 0  # updates over which the step size first rises linearly (transformer: 5,000; App. B.2)
    plateau: PlateauConfig = field(default_factory=PlateauConfig)
    betas: tuple[float, float] = (0.9, 0.999)  # of the running mean and variance (transformer: 0.9, 0.96)
    eps: float = 1e-8  # added to the root of the variance
    weight_decay: float = 1e-4  # decoupled (transformer: 0.045; CLIP: 0.2)
    decay: str = "all"  # "all" parameters | "matrices": not gains, biases, temperature (CLIP paper, Section 2.5)
    variance_clip: float | None = None  # the running variance never exceeds it (transformer: 5; App. B.2)
    moments: str = "float32"  # how mean and variance are kept: float32 | paper16, the matrices' in 1-6-9 and 0-6-10
    kind: str = "adamw"  # the paper's | "muon": layers' matrices step along orthogonal directions, all else as AdamW

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
        """The step size of the update that follows `step` others, before any halving."""
        warm = min(1.0, (step + 1) / self.warm_up) if self.warm_up else 1.0
        return warm * self.learning_rate.value(step)


class AdamW(torch.optim.AdamW):
    """AdamW whose step can be called off by a number that only the device knows yet."""

    def step_where(self, finite: Tensor, learning_rate: float) -> None:
        """Step if `finite` is 1; leave weights and moments as they are if it is 0."""
        for group in self.param_groups:
            group["lr"] = learning_rate
        self.found_inf = 1 - finite  # the fused kernels read it, as torch's gradient scaler has them do
        self.step()


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW | PaperAdamW:
    """The optimizer of the parameters of `model` that are trained.

    AdamW is torch's fused form, three times as fast on a CPU as ours, unless that cannot do what `config` asks for.
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
    """Watches the training loss and says what share of the step size is left."""

    def __init__(self, config: PlateauConfig, device: torch.device):
        self.config = config
        self.halvings = 0
        self.reference: float | None = None  # mean loss of the last window that was an improvement
        self.waited = 0  # windows since
        self.total = torch.zeros((), device=device)  # of the losses in this window
        self.count = torch.zeros((), device=device)  # of the updates in this window that were not skipped

    @property
    def factor(self) -> float:
        return 0.5**self.halvings

    def update(self, loss: Tensor, counts: Tensor, step: int) -> bool:
        """Take in the `loss` of update number `step` if `counts` is 1, not 0; true if that halved the rate.

        Waits for the device once a window only.
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
        """Everything that `restore` needs, as JSON can hold it."""
        total, count = self.total.item(), self.count.item()
        readings = {"reference": self.reference, "waited": self.waited, "total": total, "count": count}
        return {"halvings": self.halvings, **readings}

    def restore(self, state: dict[str, Any]) -> None:
        self.halvings, self.reference, self.waited = state["halvings"], state["reference"], state["waited"]
        self.total.fill_(state["total"])
        self.count.fill_(state["count"])
