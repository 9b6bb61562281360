"""Weights in the two formats of OpenAI's CLIPs: TorchScript archives in half precision, and state dicts."""

from pathlib import Path

import torch
from reference_clips import VOCABULARY
from torch import Tensor, nn

State = dict[str, Tensor]


class Shell(nn.Module):
    """Module that holds tensors under the names of a state dict, without a computation."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def hold(self, name: str, tensor: Tensor) -> None:
        first, _, rest = name.partition(".")
        if rest:
            if first not in self._modules:
                self.add_module(first, Shell())
            self.get_submodule(first).hold(rest, tensor)
        elif tensor.is_floating_point() and "running" not in name:
            self.register_parameter(first, nn.Parameter(tensor))
        else:
            self.register_buffer(first, tensor)


def save_archive(state: State, path: Path) -> Path:
    """Save as OpenAI did: TorchScript, in half precision, with attributes that are no weights."""
    model = Shell()
    for name, tensor in state.items():
        model.hold(name, tensor.half() if tensor.is_floating_point() else tensor)
    for name, number in {"input_resolution": 32, "context_length": 40, "vocab_size": VOCABULARY}.items():
        model.hold(name, torch.tensor(number))
    model.hold("transformer.resblocks.0.attn_mask", torch.zeros(40, 40))
    model.layers, model.rates, model.flags = [3, 4, 6, 3], [0.5], [True]
    torch.jit.save(torch.jit.script(model), path)
    return path


def save_state(state: State, path: Path) -> Path:
    torch.save(state, path)
    return path


def halved(state: State) -> State:
    return {name: tensor.half().float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
