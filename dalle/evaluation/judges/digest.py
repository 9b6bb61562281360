"""Digest of a judge's weights, which identifies the judge in metrics.json."""

import hashlib

from torch import nn


def weights_digest(model: nn.Module) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the model's tensors and their names.

    Judges are trained where they are used, so two machines may have judges that differ by rounding.
    """
    sha256 = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sha256.update(name.encode())
        sha256.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha256.hexdigest()[:16]
