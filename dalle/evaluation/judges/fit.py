"""Training loop of the judges of drawings."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dalle.progress import progress_bar

log = logging.getLogger(__name__)


def fit(
    name: str,
    parameters: Sequence[nn.Parameter],
    loss_of: Callable[[Tensor], Tensor],
    examples: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    weight_decay: float = 0.05,
) -> None:
    """Minimise a loss over `parameters` by AdamW with a one-cycle learning rate.

    name: of the judge, for the progress bar and the log.
    loss_of: computes the scalar loss of the examples with these numbers, (b,) int64.
    examples: their number. Each epoch has a random order, and leaves the last incomplete batch out.
    learning_rate: the highest one.
    """
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=weight_decay)
    batch_size = min(batch_size, examples)
    per_epoch = examples // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, epochs * per_epoch, pct_start=0.2)
    bar = progress_bar(epochs * per_epoch, f"judge of {name}", "updates")
    for epoch in range(epochs):
        permutation = torch.randperm(examples, generator=generator)
        total_loss = 0.0
        for indices in permutation[: per_epoch * batch_size].split(batch_size):
            loss = loss_of(indices)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            total_loss += loss.item()
            bar.update()
        log.info("%s: epoch %d of %d, loss %.3f", name, epoch + 1, epochs, total_loss / per_epoch)
    bar.close()
