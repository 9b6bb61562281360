"""Check for NaN and infinity in the outputs of models, from which tokens and images would be drawn all the same."""

from torch import Tensor


def check_finite(values: Tensor, source: str) -> None:
    """Raise ValueError if values are NaN or infinite.

    source: model and output for the message, as in "the transformer computes logits".
    """
    if not values.isfinite().all():
        raise ValueError(
            f"{source} that are NaN or infinite: its weights are damaged, or its training diverged; use another "
            "checkpoint"
        )
