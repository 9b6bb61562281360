"""Batch norm whose statistics are those of all ranks' batches together."""

import torch
from torch import Tensor, nn

from dalle import distributed


def convert_sync_batchnorm(module: nn.Module) -> None:
    """Replace the batch norms in `module` by `SyncBatchNorm`, with the same parameters and statistics."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d) and not isinstance(child, SyncBatchNorm):
            setattr(module, name, SyncBatchNorm.from_batch_norm(child))
        else:
            convert_sync_batchnorm(child)


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all ranks; torch's own version works on GPUs only."""

    @classmethod
    def from_batch_norm(cls, norm: nn.BatchNorm2d) -> "SyncBatchNorm":
        """Create a norm that shares the parameters and running statistics of `norm`."""
        sync = cls(norm.num_features, norm.eps, norm.momentum)
        sync._parameters, sync._buffers = norm._parameters, norm._buffers
        return sync.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each channel, in training by the statistics of all ranks: (b, c, h, w) -> (b, c, h, w)."""
        if not self.training or distributed.get_world_size() == 1:
            return super().forward(input)
        x = input.float()
        moments = torch.stack([x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), correction=0)])  # (2, c)
        means, variances = distributed.all_gather(moments.unsqueeze(0)).unbind(dim=1)  # (ranks, c)
        mean = means.mean(dim=0)
        variance = (variances + (means - mean).square()).mean(dim=0)
        self._update_running_stats(mean.detach(), variance.detach(), count=len(means) * x.numel() // x.shape[1])
        gain = self.weight * (variance + self.eps).rsqrt()
        normed = (x - mean[:, None, None]) * gain[:, None, None] + self.bias[:, None, None]
        return normed.to(input.dtype)

    @torch.no_grad()
    def _update_running_stats(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Update the running statistics with the mean and variance, (c,) each, of `count` numbers per channel."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
