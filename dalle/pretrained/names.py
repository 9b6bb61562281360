"""Tensors by our names instead of others'."""

from collections.abc import Mapping

# the layers of a `TransformerBlock` (dalle/models/blocks.py), the only place that names them for importers
ATTENTION_NORM, MLP_NORM = ".attention.norm.", ".mlp.norm."
QKV, ATTENTION_OUT = ".attention.branch.qkv.", ".attention.branch.out."
MLP_IN, MLP_OUT = ".mlp.branch.expand.", ".mlp.branch.out."


def renamed(name: str, starts: Mapping[str, str], parts: Mapping[str, str]) -> str:
    """`name` with the first of `starts` that it begins with replaced, and all `parts` within the rest.

    A name that none of them fits stays as it is, for `checkpoint.check_tensors` to find.
    """
    start = next((start for start in starts if name.startswith(start)), None)
    if start is None:
        return name
    rest = name.removeprefix(start)
    for theirs, ours in parts.items():
        rest = rest.replace(theirs, ours)
    return starts[start] + rest
