"""Layers of the dVAE next to its codes, as matrix products."""

import pytest
import torch
import torch.nn.functional as F

from dalle.models.dvae.convolutions import SameConv2d


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("kernel", [1, 3])
def test_full_precision_layers_equal_the_convolution_under_autocast(kernel, layout):
    generator = torch.Generator().manual_seed(0)
    layer = SameConv2d(12, 40, kernel)
    torch.nn.init.normal_(layer.bias, generator=generator)
    x = torch.randn(2, 12, 5, 7, generator=generator).bfloat16().to(memory_format=layout).requires_grad_()
    expected = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=kernel // 2)
    with torch.autocast("cpu", torch.bfloat16):
        actual = layer.in_full_precision(x)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected.float(), rtol=1e-5, atol=1e-5)
    output_gradient = torch.randn(actual.shape, generator=generator)
    inputs = [x, layer.weight, layer.bias]
    gradients = torch.autograd.grad(actual, inputs, output_gradient)
    references = torch.autograd.grad(expected, inputs, output_gradient.double())
    torch.testing.assert_close(gradients[0], references[0])  # bfloat16
    torch.testing.assert_close(gradients[1:], references[1:], rtol=1e-5, atol=1e-5)
