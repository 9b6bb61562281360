"""A small reference of CLIP's ResNet: random weights under the names of OpenAI's released code, and its features."""

import torch
import torch.nn.functional as F
from openai_archive import State
from torch import Tensor

BLOCKS = (2, 1, 1, 2)  # of the small ResNet's stages


def resnet_state_dict(vit: State) -> State:
    """Return the text encoder of `vit` with a small ResNet, with names and shapes of the released code."""
    generator = torch.Generator().manual_seed(1)
    state = {name: tensor for name, tensor in vit.items() if not name.startswith("visual.")}

    def convolution(conv: str, norm: str, outputs: int, inputs: int, kernel: int) -> None:
        spread = (4 / (inputs * kernel**2)) ** 0.5  # large enough for pictures to differ at the end
        state[f"visual.{conv}.weight"] = spread * torch.randn(outputs, inputs, kernel, kernel, generator=generator)
        state[f"visual.{norm}.weight"] = 1 + 0.2 * torch.randn(outputs, generator=generator)
        state[f"visual.{norm}.bias"] = 0.2 * torch.randn(outputs, generator=generator)
        state[f"visual.{norm}.running_mean"] = 0.2 * torch.randn(outputs, generator=generator)
        state[f"visual.{norm}.running_var"] = 0.5 + torch.rand(outputs, generator=generator)
        state[f"visual.{norm}.num_batches_tracked"] = torch.tensor(17)

    width = 8
    convolution("conv1", "bn1", width // 2, 3, 3)
    convolution("conv2", "bn2", width // 2, width // 2, 3)
    convolution("conv3", "bn3", width, width // 2, 3)
    inputs = width
    for stage, depth in enumerate(BLOCKS):
        inner = width * 2**stage
        for number in range(depth):
            block = f"layer{stage + 1}.{number}"
            convolution(f"{block}.conv1", f"{block}.bn1", inner, inputs, 1)
            convolution(f"{block}.conv2", f"{block}.bn2", inner, inner, 3)
            convolution(f"{block}.conv3", f"{block}.bn3", 4 * inner, inner, 1)
            if number == 0:
                convolution(f"{block}.downsample.0", f"{block}.downsample.1", 4 * inner, inputs, 1)
            inputs = 4 * inner
    state["visual.attnpool.positional_embedding"] = 0.2 * torch.randn(5, inputs, generator=generator)
    for part in "qkvc":
        outputs = 24 if part == "c" else inputs
        weight = torch.randn(outputs, inputs, generator=generator) * inputs**-0.5
        state[f"visual.attnpool.{part}_proj.weight"] = weight
        state[f"visual.attnpool.{part}_proj.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    return state


def resnet_features(state: State, x: Tensor, heads: int) -> Tensor:
    """Reference: the published ResNet, from normalised pixels to features that are not normalised."""

    def convolve(conv: str, norm: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel = state[f"visual.{conv}.weight"]
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        mean, variance, gain, bias = (
            state[f"visual.{norm}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * gain + bias

    x = convolve("conv1", "bn1", x, stride=2).relu()
    x = convolve("conv2", "bn2", x).relu()
    x = convolve("conv3", "bn3", x).relu()
    x = F.avg_pool2d(x, 2)
    for stage, depth in enumerate(BLOCKS, 1):
        for number in range(depth):
            block = f"layer{stage}.{number}"
            halved = number == 0 and stage > 1
            y = convolve(f"{block}.conv1", f"{block}.bn1", x).relu()
            y = convolve(f"{block}.conv2", f"{block}.bn2", y).relu()
            y = F.avg_pool2d(y, 2) if halved else y
            y = convolve(f"{block}.conv3", f"{block}.bn3", y)
            if number == 0:
                x = F.avg_pool2d(x, 2) if halved else x
                x = convolve(f"{block}.downsample.0", f"{block}.downsample.1", x)
            x = (x + y).relu()

    def project(part: str, x: Tensor) -> Tensor:
        return x @ state[f"visual.attnpool.{part}_proj.weight"].T + state[f"visual.attnpool.{part}_proj.bias"]

    cells = x.flatten(2).mT
    cells = torch.cat([cells.mean(1, keepdim=True), cells], 1) + state["visual.attnpool.positional_embedding"]
    pooled = []
    q, k, v = project("q", cells[:, :1]), project("k", cells), project("v", cells)
    for of_head in zip(*(tensor.chunk(heads, dim=-1) for tensor in (q, k, v)), strict=True):
        query, key, value = of_head
        weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1)
        pooled.append(weights @ value)
    return project("c", torch.cat(pooled, dim=-1)[:, 0])
