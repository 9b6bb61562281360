import pytest
import torch
from every_pattern import PATTERNS
from torch import Tensor, nn

from dalle.models.attention import DenseMaskAttention, TextImageSoftmax
from dalle.models.transformer.patterns import Column, Convolutional, Dense, Pattern, Row, sequence_attend_mask
from dalle.models.transformer.sparse_attention import (
    CausalAttention,
    ColumnSparseAttention,
    DeviceDispatch,
    RowSparseAttention,
    SeparateSoftmaxAttention,
    build_attention,
    rows_attended,
)

TEXT, GRID = 5, 4
PADDING_MASK = torch.tensor([[False, False, True, True, True], [False] * 5])


def implementations(pattern: Pattern, normalisation: str) -> list[nn.Module]:
    """Return one module of every class that can compute the pattern."""
    joint = normalisation == "joint"
    modules: list[nn.Module] = [RowSparseAttention(pattern, TEXT, GRID, TextImageSoftmax(normalisation))]
    dense = DenseMaskAttention(sequence_attend_mask(pattern, TEXT, GRID))
    modules.append(dense if joint else SeparateSoftmaxAttention(pattern, TEXT, GRID))
    modules += [ColumnSparseAttention(TEXT, GRID, TextImageSoftmax(normalisation))] if pattern == Column() else []
    modules += [CausalAttention()] if pattern == Dense() and joint else []
    return modules


def reference_attention(q: Tensor, k: Tensor, v: Tensor, attend_mask: Tensor, normalisation: str) -> Tensor:
    """Reference attention, from all scores: one softmax over all attended keys, or one each for text and image keys."""
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~attend_mask, -torch.inf)
    parts = [scores] if normalisation == "joint" else [scores[..., :TEXT], scores[..., TEXT:]]
    weights = torch.cat([part.softmax(dim=-1) for part in parts], dim=-1)
    return (
        torch.where(attend_mask, weights, 0) @ v
    )  # text positions attend to no image keys: their softmax is over nothing


@pytest.mark.parametrize("normalisation", ["joint", "separate"])
@pytest.mark.parametrize("key_padding_mask", [None, PADDING_MASK], ids=["no mask", "some padding"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_implementation_equals_the_reference_forward_and_backward(pattern, key_padding_mask, normalisation):
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(2, 3, TEXT + GRID**2, 8, generator=generator, requires_grad=True) for _ in range(3)]
    output_gradient = torch.randn(2, 3, TEXT + GRID**2, 8, generator=generator)
    attend_mask = sequence_attend_mask(pattern, TEXT, GRID).expand(2, 1, -1, -1).clone()
    if key_padding_mask is not None:
        attend_mask[0, :, :, 2:5] = False

    expected = reference_attention(*qkv, attend_mask, normalisation)
    gradients = torch.autograd.grad((expected * output_gradient).sum(), qkv)
    assert all(gradient.isfinite().all() for gradient in gradients)
    for attend in implementations(pattern, normalisation):
        actual = attend(*qkv, key_padding_mask)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(torch.autograd.grad((actual * output_gradient).sum(), qkv), gradients)


@pytest.mark.parametrize("normalisation", ["joint", "separate"])
@pytest.mark.parametrize(("pattern", "query_rows"), [(Convolutional(11), 2), (Dense(), 2), (Row(), 1)], ids=str)
def test_two_rows_of_queries_that_share_their_keys_equal_the_dense_mask(pattern, query_rows, normalisation):
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(2, 3, TEXT + 64, 8, generator=generator, requires_grad=True) for _ in range(3)]
    output_gradient = torch.randn(2, 3, TEXT + 64, 8, generator=generator)
    attend = RowSparseAttention(pattern, TEXT, 8, TextImageSoftmax(normalisation))
    assert attend.query_rows == query_rows
    expected = reference_attention(*qkv, sequence_attend_mask(pattern, TEXT, 8), normalisation)
    actual = attend(*qkv, None)
    torch.testing.assert_close(actual, expected)
    gradients = torch.autograd.grad((expected * output_gradient).sum(), qkv)
    torch.testing.assert_close(torch.autograd.grad((actual * output_gradient).sum(), qkv), gradients)


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        (Dense(), CausalAttention),
        (Row(), RowSparseAttention),
        (Column(), ColumnSparseAttention),
        (Convolutional(11), RowSparseAttention),
    ],
    ids=str,
)
def test_the_papers_sizes_use_sparse_attention_on_cpus(pattern, kind):
    joint = build_attention(pattern, 256, 32)
    separate = build_attention(pattern, 256, 32, normalisation="separate")
    if kind is CausalAttention:
        assert (type(joint), type(separate)) == (CausalAttention, SeparateSoftmaxAttention)
        return
    # the threshold was measured on CPUs
    assert (type(joint.specialised), type(joint.fallback)) == (kind, DenseMaskAttention)
    assert (type(separate.specialised), type(separate.fallback)) == (kind, SeparateSoftmaxAttention)
    assert isinstance(build_attention(pattern, 256, 32, "sparse"), kind)


def test_the_implementation_depends_on_the_device():
    attention = DeviceDispatch("cpu", nn.Identity(), nn.Identity())
    called = []
    for name in ("specialised", "fallback"):
        getattr(attention, name).forward = lambda *_, name=name: called.append(name)
    for device in ("cpu", "meta"):
        x = torch.empty(1, 1, 2, 3, device=device)
        attention(x, x, x)
    assert called == ["specialised", "fallback"]


@pytest.mark.parametrize("pattern", [Row(), Column(), Convolutional(5)], ids=str)
def test_small_grids_and_attention_dense_use_the_dense_mask(pattern):
    assert isinstance(build_attention(pattern, 32, 8), DenseMaskAttention)
    assert isinstance(build_attention(pattern, 256, 32, "dense"), DenseMaskAttention)
    assert isinstance(build_attention(pattern, 256, 32, "dense", "separate"), SeparateSoftmaxAttention)


@pytest.mark.parametrize(
    ("pattern", "rows"),
    [
        (Row(), 2),
        (Row(counts_itself=False), 3),
        (Convolutional(11), 7),
        (Convolutional(11, wraps=False), 6),
        (Column(), 32),
    ],
    ids=str,
)
def test_number_of_rows_attended_to_by_each_pattern(pattern, rows):
    assert rows_attended(pattern, 32) == rows


def test_an_unknown_implementation_is_rejected():
    with pytest.raises(ValueError, match="'fast'"):
        build_attention(Row(), 5, 4, "fast")


def test_an_unknown_normalisation_is_rejected():
    with pytest.raises(ValueError, match="'split'; choose one of joint, separate"):
        build_attention(Row(), 5, 4, normalisation="split")


@pytest.mark.parametrize("changes", [{}, {"pads": "masked", "attention_normalisation": "separate"}], ids=str)
@torch.no_grad()
def test_a_model_has_the_same_logits_with_sparse_and_dense_attention(make_transformer, changes):
    sizes = {"patterns": ["paper"], "depth": 3, "grid": 16, "text_positions": 12, **changes}
    model, reference = make_transformer(**sizes), make_transformer(attention="dense", **sizes)
    assert not any(
        isinstance(attend, (DenseMaskAttention, SeparateSoftmaxAttention)) for attend in model.attend.values()
    )
    caption = model.sequence.pad_captions([[1, 2, 3]])
    image = torch.randint(13, (1, 256), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(caption, image), reference(caption, image), rtol=1e-4, atol=1e-4)
