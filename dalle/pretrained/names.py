"""Conversion of tensor names in published weights to ours."""

from collections.abc import Mapping

# names of the layers of a `TransformerBlock` (dalle/models/blocks.py), shared by all importers
ATTENTION_NORM, MLP_NORM = ".attention.norm.", ".mlp.norm."
QKV, ATTENTION_OUT = ".attention.branch.qkv.", ".attention.branch.out."
MLP_IN, MLP_OUT = ".mlp.branch.expand.", ".mlp.branch.out."


def renamed(name: str, starts: Mapping[str, str], parts: Mapping[str, str]) -> str:
    """Convert a tensor name: replace its prefix, the first match in `starts`, and all of `parts` in the rest.

    A name without a matching prefix is returned unchanged; `checkpoint.check_tensors` then reports it.
    """
    start = next((start for start in starts if name.startswith(start)), None)
    if start is None:
        return name
    rest = name.removeprefix(start)
    for theirs, ours in parts.items():
        rest = rest.replace(theirs, ours)
    return starts[start] + rest
