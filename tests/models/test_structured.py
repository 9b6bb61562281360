import pytest
import torch

from dalle.models.attention import Masked
from dalle.models.patterns import Column, Convolutional, Dense, Row, stream_mask
from dalle.models.structured import Causal, Columns, Lines, attend_for, lines_seen

TEXT, GRID = 5, 4
WAYS = {
    "dense": (Dense(), Causal()),
    "row": (Row(), Lines(Row(), TEXT, GRID)),
    "column": (Column(), Columns(TEXT, GRID)),
    "column in lines": (Column(), Lines(Column(), TEXT, GRID)),
    "convolutional": (Convolutional(3), Lines(Convolutional(3), TEXT, GRID)),
    "wide convolutional": (Convolutional(7), Lines(Convolutional(7), TEXT, GRID)),
}


@pytest.mark.parametrize("name", WAYS)
def test_structured_attention_equals_its_dense_mask_forward_and_backward(name):
    pattern, structured = WAYS[name]
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(2, 3, TEXT + GRID**2, 8, generator=generator, requires_grad=True) for _ in range(3)]
    towards = torch.randn(2, 3, TEXT + GRID**2, 8, generator=generator)

    masked = Masked(stream_mask(pattern, TEXT, GRID))
    expected, actual = masked(*qkv), structured(*qkv)
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad((out * towards).sum(), qkv) for out in (actual, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [(Dense(), Causal), (Row(), Lines), (Column(), Columns), (Convolutional(11), Lines)],
    ids=str,
)
def test_the_papers_sizes_are_structured(pattern, kind):
    assert isinstance(attend_for(pattern, 256, 32), kind)


@pytest.mark.parametrize("pattern", [Row(), Column(), Convolutional(5)], ids=str)
def test_small_grids_and_whoever_asks_for_it_have_the_dense_mask(pattern):
    assert isinstance(attend_for(pattern, 32, 8), Masked)
    assert isinstance(attend_for(pattern, 256, 32, "masked"), Masked)


@pytest.mark.parametrize(("pattern", "lines"), [(Row(), 2), (Convolutional(11), 7), (Column(), 32)], ids=str)
def test_lines_seen_by_each_pattern(pattern, lines):
    assert lines_seen(pattern, 32) == lines


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="'fast'"):
        attend_for(Row(), 5, 4, "fast")


@torch.no_grad()
def test_a_whole_model_answers_the_same_either_way(make_transformer):
    sizes = {"patterns": ["paper"], "depth": 3, "grid": 16, "text_positions": 12}
    model, reference = make_transformer(**sizes), make_transformer(attention="masked", **sizes)
    assert not any(isinstance(attend, Masked) for attend in model.attend.values())
    caption = model.stream.captions([[1, 2, 3]])
    image = torch.randint(13, (1, 256), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(caption, image), reference(caption, image), rtol=1e-4, atol=1e-4)
