"""Discrete VAE: agreement with the published architecture and its initial weights."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_dvae import TINY, build, pictures

from dalle.models.dvae.model import DiscreteVAE, DVAEConfig
from dalle.models.dvae.relaxation import gumbel_softmax


def published_shapes(half: str) -> dict[str, tuple[int, ...]]:
    """Return the paper's weights under our names, as in OpenAI's released code; h is a quarter of the outputs."""
    if half == "encoder":
        groups = [(256, 256), (256, 512), (512, 1024), (1024, 2048)]
        shapes: dict[str, tuple[int, ...]] = {"input": (256, 3, 7, 7), "output": (8192, 2048, 1, 1)}
        kernels = (3, 3, 3, 1)
    else:
        groups = [(128, 2048), (2048, 1024), (1024, 512), (512, 256)]
        shapes = {"input": (128, 8192, 1, 1), "output": (6, 256, 1, 1)}
        kernels = (1, 3, 3, 3)
    for group, (inputs, outputs) in enumerate(groups):
        for block, entering in enumerate((inputs, outputs)):
            h = outputs // 4
            name = f"groups.{group}.{block}"
            widths = [(h, entering), (h, h), (h, h), (outputs, h)]
            for part, sizes, k in zip(("first", "second", "third", "last"), widths, kernels, strict=True):
                shapes[f"{name}.{part}"] = (*sizes, k, k)
            if entering != outputs:
                shapes[f"{name}.identity"] = (outputs, entering, 1, 1)
    return shapes


@pytest.mark.parametrize(("half", "parameters", "tensors"), [("encoder", 53_786_240, 74), ("decoder", 43_829_766, 76)])
def test_default_weights_have_the_published_shapes(half, parameters, tensors):
    with torch.device("meta"):
        state = getattr(DiscreteVAE(DVAEConfig()), half).state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == parameters
    assert len(state) == tensors
    weights = {name.removesuffix(".weight"): tuple(w.shape) for name, w in state.items() if name.endswith(".weight")}
    assert weights == published_shapes(half)
    assert all(state[f"{name}.bias"].shape == shape[:1] for name, shape in weights.items())


def test_default_encodes_256_pixels_as_32_by_32_of_8192_codes():
    config = DVAEConfig()
    assert (config.vocabulary, config.downsample, config.branch_gain) == (8192, 8, 1 / 64)
    with torch.device("meta"):
        model = DiscreteVAE(config)
        assert model.logits(torch.empty(1, 3, 256, 256)).shape == (1, 8192, 32, 32)
        assert model.decode_codes(torch.empty(1, 8192, 32, 32)).shape == (1, 6, 256, 256)


def literal_block(block, x, gain):
    """Reference: Appendix A.1 literally, ReLU before every convolution, identity path plus gain times residual path."""
    h = x
    for convolution in (block.first, block.second, block.third, block.last):
        padding = convolution.weight.shape[-1] // 2
        h = F.conv2d(F.relu(h), convolution.weight, convolution.bias, padding=padding)
    return block.identity(x) + gain * h


def literal_encoder(model: DiscreteVAE, images: torch.Tensor, pool) -> torch.Tensor:
    x = model.encoder.input(0.8 * images + 0.1)
    for number, group in enumerate(model.encoder.groups):
        for block in group.children():
            x = literal_block(block, x, model.config.branch_gain)
        if number < model.config.groups - 1:
            x = pool(x, 2)
    return model.encoder.output(F.relu(x))


def literal_decoder(model: DiscreteVAE, codes: torch.Tensor) -> torch.Tensor:
    """Reference as published: each group except the last is upsampled before the next one."""
    x = model.decoder.input(codes)
    for number, group in enumerate(model.decoder.groups):
        for block in group.children():
            x = literal_block(block, x, model.config.branch_gain)
        if number < model.config.groups - 1:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return model.decoder.output(F.relu(x))


@pytest.mark.parametrize(("name", "pool"), [("max", F.max_pool2d), ("average", F.avg_pool2d)])
@torch.no_grad()
def test_encoder_matches_published_construction(name, pool):
    model = build(replace(TINY, pool=name))
    images = pictures()
    torch.testing.assert_close(model.logits(images), literal_encoder(model, images, pool))


@torch.no_grad()
def test_upsampling_after_1x1_convolutions_equals_upsampling_before():
    model = build()
    codes = gumbel_softmax(torch.randn(2, 11, 3, 5, generator=torch.Generator().manual_seed(1)), 1.0).double()
    torch.testing.assert_close(model.decode_codes(codes), literal_decoder(model, codes))


def test_gradients_match_with_folded_gain_and_late_upsampling():
    model = build()
    codes = F.softmax(torch.randn(1, 11, 2, 2, generator=torch.Generator().manual_seed(1)).double(), dim=1)
    towards = pictures(1, 8, 8).repeat(1, 2, 1, 1)
    parameters = list(model.decoder.parameters())
    ours = torch.autograd.grad((model.decode_codes(codes) * towards).sum(), parameters)
    literal = torch.autograd.grad((literal_decoder(model, codes) * towards).sum(), parameters)
    torch.testing.assert_close(ours, literal)


@torch.no_grad()
def test_inputs_are_not_modified():
    model = build()  # its ReLUs work in place
    images, codes = pictures(), F.softmax(torch.randn(2, 11, 4, 4).double(), dim=1)
    before = images.clone(), codes.clone()
    model.logits(images)
    model.decode_codes(codes)
    assert images.equal(before[0])
    assert codes.equal(before[1])


def test_initial_weights_preserve_the_scale_of_activations():
    torch.manual_seed(0)
    state = DiscreteVAE(DVAEConfig(vocabulary=64, width=64, groups=2)).state_dict()
    for name, tensor in state.items():
        if name.endswith("bias"):
            assert not tensor.any()
        else:
            fan_in = tensor[0].numel()
            assert tensor.std().item() == pytest.approx(fan_in**-0.5, rel=0.1), name
