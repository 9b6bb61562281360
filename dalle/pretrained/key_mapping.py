"""Mapping from the state-dict keys of published weights to those of this project's models."""

from collections.abc import Mapping

# keys of the layers of a `TransformerBlock` (dalle/models/blocks.py), shared by all importers
ATTENTION_NORM, MLP_NORM = ".attention.norm.", ".mlp.norm."
QKV, ATTENTION_OUT = ".attention.branch.qkv.", ".attention.branch.out."
MLP_IN, MLP_OUT = ".mlp.branch.expand.", ".mlp.branch.out."


def rename_key(key: str, prefixes: Mapping[str, str], layers: Mapping[str, str]) -> str:
    """Convert a state-dict key: replace its prefix, the first match in `prefixes`, and all of `layers` in the rest.

    A key without a matching prefix is returned unchanged; `checkpoint.check_tensors` then reports it.
    """
    prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
    if prefix is None:
        return key
    suffix = key.removeprefix(prefix)
    for source, target in layers.items():
        suffix = suffix.replace(source, target)
    return prefixes[prefix] + suffix
