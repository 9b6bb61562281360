import pytest
import torch
from torch import Tensor, nn

from dalle.models.attention import DenseMaskAttention, TextImageSoftmax
from dalle.models.transformer.patterns import Column, Convolutional, Dense, Pattern, Row, stream_mask
from dalle.models.transformer.sparse_attention import (
    ByDevice,
    CausalAttention,
    ColumnSparseAttention,
    RowSparseAttention,
    SeparateSoftmaxAttention,
    attend_for,
    rows_seen,
)

TEXT, GRID = 5, 4
HIDDEN = torch.tensor([[False, False, True, True, True], [False] * 5])
PATTERNS = {
    "dense": Dense(),
    "row": Row(),
    "row before itself": Row(counts_itself=False),
    "column": Column(),
    "convolutional": Convolutional(3),
    "wide convolutional": Convolutional(7),
    "clamped convolutional": Convolutional(3, wraps=False),
}


def ways(pattern: Pattern, normalisation: str) -> list[nn.Module]:
    """Every class that can compute the pattern."""
    joint = normalisation == "joint"
    found: list[nn.Module] = [RowSparseAttention(pattern, TEXT, GRID, TextImageSoftmax(normalisation))]
    found += [
        DenseMaskAttention(stream_mask(pattern, TEXT, GRID)) if joint else SeparateSoftmaxAttention(pattern, TEXT, GRID)
    ]
    found += [ColumnSparseAttention(TEXT, GRID, TextImageSoftmax(normalisation))] if pattern == Column() else []
    found += [CausalAttention()] if pattern == Dense() and joint else []
    return found


def literal(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, normalisation: str) -> Tensor:
    """Reference attention, from all scores: one softmax over all visible keys, or one for each kind and their sum."""
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
    parts = [scores] if normalisation == "joint" else [scores[..., :TEXT], scores[..., TEXT:]]
    weights = torch.cat([part.softmax(dim=-1) for part in parts], dim=-1)
    return torch.where(mask, weights, 0) @ v  # text states see no image states: a softmax of nothing


@pytest.mark.parametrize("normalisation", ["joint", "separate"])
@pytest.mark.parametrize("key_padding_mask", [None, HIDDEN], ids=["all seen", "some padding"])
@pytest.mark.parametrize("name", PATTERNS)
def test_every_way_to_attend_is_what_the_mask_says_forward_and_backward(name, key_padding_mask, normalisation):
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(2, 3, TEXT + GRID**2, 8, generator=generator, requires_grad=True) for _ in range(3)]
    towards = torch.randn(2, 3, TEXT + GRID**2, 8, generator=generator)
    mask = stream_mask(PATTERNS[name], TEXT, GRID).expand(2, 1, -1, -1).clone()
    if key_padding_mask is not None:
        mask[0, :, :, 2:5] = False

    expected = literal(*qkv, mask, normalisation)
    gradients = torch.autograd.grad((expected * towards).sum(), qkv)
    assert all(gradient.isfinite().all() for gradient in gradients)
    for attend in ways(PATTERNS[name], normalisation):
        actual = attend(*qkv, key_padding_mask)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(torch.autograd.grad((actual * towards).sum(), qkv), gradients)


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
def test_the_papers_sizes_are_structured(pattern, kind):
    joint = attend_for(pattern, 256, 32)
    separate = attend_for(pattern, 256, 32, normalisation="separate")
    if kind is CausalAttention:
        assert (type(joint), type(separate)) == (CausalAttention, SeparateSoftmaxAttention)
        return
    assert (type(joint.on_cpu), type(joint.elsewhere)) == (
        kind,
        DenseMaskAttention,
    )  # the threshold was measured on CPUs
    assert (type(separate.on_cpu), type(separate.elsewhere)) == (kind, SeparateSoftmaxAttention)
    assert isinstance(attend_for(pattern, 256, 32, "structured"), kind)


def test_the_device_decides_which_of_two_forms_attends():
    forms = ByDevice(lambda *_: "structured", lambda *_: "masked")
    for device, expected in (("cpu", "structured"), ("meta", "masked")):
        x = torch.empty(1, 1, 2, 3, device=device)
        assert forms(x, x, x) == expected


@pytest.mark.parametrize("pattern", [Row(), Column(), Convolutional(5)], ids=str)
def test_small_grids_and_whoever_asks_for_it_have_the_dense_mask(pattern):
    assert isinstance(attend_for(pattern, 32, 8), DenseMaskAttention)
    assert isinstance(attend_for(pattern, 256, 32, "masked"), DenseMaskAttention)
    assert isinstance(attend_for(pattern, 256, 32, "masked", "separate"), SeparateSoftmaxAttention)


@pytest.mark.parametrize(
    ("pattern", "lines"),
    [
        (Row(), 2),
        (Row(counts_itself=False), 3),
        (Convolutional(11), 7),
        (Convolutional(11, wraps=False), 6),
        (Column(), 32),
    ],
    ids=str,
)
def test_lines_seen_by_each_pattern(pattern, lines):
    assert rows_seen(pattern, 32) == lines


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="'fast'"):
        attend_for(Row(), 5, 4, "fast")


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="'split'; choose one of joint, separate"):
        attend_for(Row(), 5, 4, normalisation="split")


@pytest.mark.parametrize("changes", [{}, {"pads": "masked", "attention_normalisation": "separate"}], ids=str)
@torch.no_grad()
def test_a_whole_model_answers_the_same_either_way(make_transformer, changes):
    sizes = {"patterns": ["paper"], "depth": 3, "grid": 16, "text_positions": 12, **changes}
    model, reference = make_transformer(**sizes), make_transformer(attention="masked", **sizes)
    assert not any(
        isinstance(attend, (DenseMaskAttention, SeparateSoftmaxAttention)) for attend in model.attend.values()
    )
    caption = model.stream.captions([[1, 2, 3]])
    image = torch.randint(13, (1, 256), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(caption, image), reference(caption, image), rtol=1e-4, atol=1e-4)
