import pytest
import torch
import torch.nn.functional as F

from dalle.models import attention
from dalle.models.attention import DenseMaskAttention, SelfAttention, causal, full, matmul_attention


def tensors(dtype, b=3, heads=2, n=12, d=8):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(b, heads, n, d, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def padding(b=3, n=12):
    return torch.arange(n) >= n - torch.arange(b)[:, None]


@pytest.mark.parametrize("shape", [None, (12, 12), (3, 1, 1, 12), (3, 1, 12, 12)])
def test_attention_by_matrix_products_equals_torchs_forward_and_backward(shape):
    attend_mask = None
    if shape is not None:
        attend_mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
        attend_mask[..., 0] = True
    results = []
    for attend in (matmul_attention, F.scaled_dot_product_attention):
        q, k, v = tensors(torch.float64)
        output = attend(q, k, v, attend_mask)
        output.square().sum().backward()
        results.append((output, q.grad, k.grad, v.grad))
    torch.testing.assert_close(results[0], results[1])


SCATTERED = torch.rand(12, 12, generator=torch.Generator().manual_seed(1)) < 0.5


@pytest.mark.parametrize(
    ("attend", "attend_mask"),
    [
        (full, torch.ones(12, 12, dtype=torch.bool)),
        (causal, torch.ones(12, 12, dtype=torch.bool).tril()),
        (DenseMaskAttention(SCATTERED), SCATTERED),
    ],
    ids=["full", "causal", "dense mask"],
)
@pytest.mark.parametrize("padded", [False, True])
def test_float64_attention_has_errors_of_float64(attend, attend_mask, padded):
    q, k, v = tensors(torch.float64)
    if padded:
        attend_mask = attend_mask & ~padding()[:, None, None]
    rows = attend_mask.any(dim=-1, keepdim=True)  # a query without keys has no defined result
    expected = (q @ k.mT / 8**0.5).masked_fill(~attend_mask, -torch.inf).softmax(dim=-1) @ v
    actual = attend(q, k, v, padding()) if padded else attend(q, k, v)
    torch.testing.assert_close(actual.where(rows, 0), expected.where(rows, 0), rtol=1e-12, atol=1e-12)


def test_attention_of_an_empty_batch_is_empty():
    for attend in (full, causal):
        assert SelfAttention(16, 2)(torch.zeros(0, 5, 16), attend).shape == (0, 5, 16)


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("attend", [full, causal])
def test_bfloat16_attention_is_close_to_float32_on_every_processor(attend, amx, monkeypatch):
    monkeypatch.setattr(attention, "has_amx", lambda: amx)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = tensors(dtype)
        output = attend(q, k, v, padding())
        assert output.dtype == dtype
        output.float().square().sum().backward()
        results.append([tensor.float() for tensor in (output, q.grad, k.grad, v.grad)])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.05)


def test_with_amx_only_training_on_short_sequences_stores_the_scores(monkeypatch):
    calls = []
    monkeypatch.setattr(attention, "has_amx", lambda: True)
    monkeypatch.setattr(attention, "matmul_attention", lambda *arguments: calls.append(arguments) or arguments[0])
    causal(*tensors(torch.bfloat16))
    assert len(calls) == 1
    with torch.no_grad():
        causal(*tensors(torch.bfloat16))
    causal(*tensors(torch.bfloat16, b=1, heads=1, n=attention.MAX_MATMUL_KEYS + 1))
    causal(*tensors(torch.float32))
    assert len(calls) == 1
