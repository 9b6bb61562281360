"""Flow matching along straight paths from data at time 0 to noise at time 1 (Lipman et al. 2023; Liu et al. 2023).

On the path x_t = (1 - t) x + t noise, the velocity d x_t / dt = noise - x equals (x_t - x) / t. A model predicts the
data x, and so the velocity; sampling follows it from noise back to data. To predict data is easier than to predict
noise, which a network with fewer channels than a patch has numbers cannot pass on (Li and He 2025).
"""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]
"""Predict the data from x_t (b, c, h, w) and times (b,): (b, c, h, w)."""

MIN_TIME = 0.1  # lower bound of the times that are divided by; samplers with up to 10 steps use no lower time


def interpolate(data: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Return x_t on the straight path: (b, c, h, w) data and noise, (b,) times -> (b, c, h, w)."""
    t = rearrange(time, "b -> b 1 1 1")
    return (1 - t) * data + t * noise


def velocity(x: Tensor, data: Tensor, time: Tensor) -> Tensor:
    """Return the velocity at x_t on the path that starts from `data`: (b, c, h, w) twice, (b,) -> (b, c, h, w)."""
    return (x - data) / rearrange(time.clamp(min=MIN_TIME), "b -> b 1 1 1")


def stratified_times(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw `count` times, uniform in [0, 1), one from each of `count` equal intervals in random order: (count,).

    Each time is uniform by itself, and their mean loss has a lower variance than that of independent times
    (Kingma et al. 2021, Appendix I.1).
    """
    order = torch.randperm(count, generator=generator, device=device)
    return (order + torch.rand(count, generator=generator, device=device)) / count


def integrate(predict: Predict, noise: Tensor, steps: int) -> Tensor:
    """Follow the predicted velocity from noise to data by `steps` Euler steps: (b, c, h, w) -> (b, c, h, w).

    A step from time t to s moves x to a mean of x and the predicted data, with weights s / t and 1 - s / t. The last
    step, to time 0, returns the prediction itself.
    """
    x = noise
    for left in range(steps, 0, -1):  # times left / steps, from 1 down
        time = torch.full((len(x),), left / steps, device=x.device)
        x = torch.lerp(x, predict(x, time), 1 / left)
    return x
