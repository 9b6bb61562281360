"""Parts of transformer blocks: QK norm, MLP, activations, and logits in float32."""

import pytest
import torch
import torch.nn.functional as F

from dalle.models.blocks import MLP, BlockConfig, Float32Linear, QuickGELU


def test_logits_are_float32_under_autocast():
    torch.manual_seed(0)
    head, states = Float32Linear(32, 8), torch.randn(4, 32)
    exact = head(states)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.nn.functional.linear(states, head.weight).dtype == torch.bfloat16
        assert head(states).equal(exact)


def test_qk_norm_bounds_attention_scores(make_transformer):
    """For states of any size, a score is at most sqrt(d) times the gains."""
    layer = make_transformer(qk_norm=True).layers[0].attention.branch
    q, k, _ = layer.project(1e4 * torch.randn(2, 7, 16))
    rms = [
        (states / norm.weight).square().mean(dim=-1) for states, norm in ((q, layer.query_norm), (k, layer.key_norm))
    ]
    torch.testing.assert_close(torch.stack(rms), torch.ones(2, 2, 2, 7))


def test_qk_norm_matches_torch(make_transformer):
    layer = make_transformer(qk_norm=True).layers[0].attention.branch
    x = torch.randn(3, 8)
    expected = F.rms_norm(x, (8,), layer.key_norm.weight, layer.key_norm.eps)
    torch.testing.assert_close(layer.key_norm(x), expected)


def test_swiglu_matches_its_definition_and_number_of_weights(make_transformer):
    layer = make_transformer(mlp="swiglu", width=48).layers[0].mlp.branch
    (gate, value), (gate_bias, value_bias) = layer.expand.weight.chunk(2), layer.expand.bias.chunk(2)
    x = torch.randn(5, 48)
    g, v = x @ gate.T + gate_bias, x @ value.T + value_bias
    torch.testing.assert_close(layer(x), (g * torch.sigmoid(g) * v) @ layer.out.weight.T + layer.out.bias)
    assert layer.expand.weight.numel() + layer.out.weight.numel() == 8 * 48**2


def test_quick_gelu_matches_its_definition():
    x = torch.linspace(-20, 20, 401)
    torch.testing.assert_close(QuickGELU()(x), x * torch.sigmoid(1.702 * x))


def test_unknown_activation_raises():
    with pytest.raises(ValueError, match=r"'relu'.*quick_gelu, gelu"):
        MLP(BlockConfig(8, 2, "relu"))
