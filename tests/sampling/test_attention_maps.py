import pytest
import torch
from PIL import Image
from torch import Tensor

from dalle.models.transformer.model import Transformer
from dalle.models.transformer.patterns import PATTERNS, sequence_attend_mask
from dalle.sampling.attention_grid import HEAT_COLOUR, attention_grid, attention_grids
from dalle.sampling.attention_maps import WordMaps, attention_to_text, check_layer, record_attention, word_maps
from dalle.sampling.pipeline import DALLE

CAPTION = "a small red circle"


@pytest.fixture(scope="module")
def dalle(checkpoints) -> DALLE:
    return DALLE.load(checkpoints)


def caption(model: Transformer) -> Tensor:
    """Return three tokens; the 6 text positions hold the start token, these three, and two pads."""
    return model.sequence.pad_captions([[1, 2, 3]])[0]


def picture(model: Transformer, seed: int = 0) -> Tensor:
    grid = model.sequence.grid
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.sequence.image_vocabulary, (grid, grid), generator=generator)


@pytest.mark.parametrize("grid", [4, 16])  # 16: large enough for structured attention
@pytest.mark.parametrize("changes", [{}, {"pads": "masked"}, {"attention_normalisation": "separate"}], ids=str)
@torch.no_grad()
def test_recording_does_not_change_logits(make_transformer, changes, grid):
    model = make_transformer(patterns=list(PATTERNS), depth=len(PATTERNS), grid=grid, **changes)
    kept: list[Tensor] = []
    inputs = caption(model)[None], picture(model).view(1, -1)
    recorded, plain = model(*inputs, record_attention(model, kept)), model(*inputs)
    assert len(kept) == len(PATTERNS)
    torch.testing.assert_close(recorded.image, plain.image, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(recorded.text, plain.text, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", PATTERNS)
def test_recorded_attention_is_the_text_part_of_dense_softmax(make_transformer, name):
    model = make_transformer(patterns=[name])
    kept: list[Tensor] = []
    q, k, v = torch.randn(3, 2, 2, 22, 8, generator=torch.Generator().manual_seed(1))
    record_attention(model, kept)[name](q, k, v)
    scores = (q @ k.mT / 8**0.5).masked_fill(~sequence_attend_mask(model.patterns[name], 6, 4), -torch.inf)
    weights = scores.softmax(dim=-1)  # of which each row adds up to one
    torch.testing.assert_close(kept[0], weights[:, :, 6:, :6])


def test_separate_softmax_text_attention_sums_to_one(make_transformer):
    model = make_transformer(attention_normalisation="separate")
    attention = attention_to_text(model, caption(model), picture(model))
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 4, 4))


def test_joint_softmax_first_cell_splits_attention_between_text_and_itself(make_transformer):
    model = make_transformer()
    attention = attention_to_text(model, caption(model), picture(model))
    assert attention.shape == (2, 4, 4, 6)
    assert (attention > 0).all()
    assert (attention.sum(dim=-1) < 1).all()


def test_masked_pads_get_no_attention(make_transformer):
    hiding, showing = (make_transformer(pads=pads) for pads in ("masked", "learned"))
    pads = [attention_to_text(model, caption(model), picture(model))[..., 4:] for model in (hiding, showing)]
    assert (pads[0] == 0).all()
    assert (pads[1] > 0).all()


def test_attention_of_a_cell_depends_on_earlier_cells_only(make_transformer):
    """The map of a cell is that of the position which predicts it."""
    model = make_transformer()
    one, other = picture(model), picture(model)
    other[2, 1] = (other[2, 1] + 1) % 13
    maps = [attention_to_text(model, caption(model), tokens).flatten(1, 2) for tokens in (one, other)]
    assert maps[0][:, :10].equal(maps[1][:, :10])
    assert (maps[0][:, 10] != maps[1][:, 10]).any()


def test_word_attention_is_the_sum_over_its_tokens():
    attention = torch.rand(3, 4, 4, 8, generator=torch.Generator().manual_seed(0))
    found = word_maps(attention, [("naive", [7, 3]), ("red", [5])])
    mean = attention.mean(dim=0)
    assert found.words == ["naive", "red"]
    torch.testing.assert_close(found.maps[0], mean[..., 1] + mean[..., 2])
    torch.testing.assert_close(found.maps[1], mean[..., 3])
    rest = found.start + found.padding + found.maps.sum(dim=0).mean().item()
    assert rest == pytest.approx(mean.sum(dim=-1).mean().item(), abs=1e-5)


def test_layers_are_counted_from_one(make_transformer):
    attention = torch.rand(3, 4, 4, 8)
    for layer in (1, 2, 3):
        assert word_maps(attention, [("red", [5])], layer).maps[0].equal(attention[layer - 1, ..., 1])
    for layer in (0, 3):
        with pytest.raises(ValueError, match=f"attention_layer={layer} is not a layer of the model; use 1 to 2"):
            check_layer(make_transformer(), layer)


def test_image_larger_than_the_models_raises(make_transformer):
    model = make_transformer()
    with pytest.raises(ValueError, match="6 x 4 tokens, but the transformer has 4 x 4"):
        attention_to_text(model, caption(model), torch.zeros(6, 4, dtype=torch.int64))


def test_grid_highlights_cells_with_high_attention():
    """Of two words over a white image, "red" has the lower right quarter and "a" the rest."""
    maps = torch.zeros(2, 4, 4)
    maps[0], maps[1, 2:, 2:], maps[0, 2:, 2:] = 0.1, 0.3, 0
    white = Image.new("RGB", (8, 8), "white")
    plain, heated = (
        attention_grid("a red", white, WordMaps(["a", "red"], heat, 0.1, 0.2), "layer 1", tile=64)
        for heat in (torch.full((2, 4, 4), 0.1), maps)
    )
    assert heated.size == plain.size
    hot = tuple(int(HEAT_COLOUR[place : place + 2], 16) for place in (1, 3, 5))

    def count(sheet: Image.Image) -> int:
        return dict((colour, number) for number, colour in sheet.getcolors(1 << 20)).get(hot, 0)

    assert count(plain) == 0
    assert count(heated) == 32 * 32


def test_every_kept_image_gets_a_grid(dalle):
    result = dalle.generate(CAPTION, candidates=3, keep=2)
    sheets = attention_grids(dalle, result)
    assert len(sheets) == 2
    assert sheets[0].tobytes() != sheets[1].tobytes()
    assert sheets[0].tobytes() != attention_grids(dalle, result, layer=1)[0].tobytes()


def test_sample_command_writes_a_grid_beside_each_image(checkpoints, run_command, tmp_path):
    options = (f"checkpoint={checkpoints}", f"caption={CAPTION}", "candidates=3", "keep=2", f"out={tmp_path / 'drawn'}")
    status, printed = run_command("sample", *options, "attention=true", "attention_layer=2")
    assert status == 0, printed
    pictures = sorted(path.name for path in (tmp_path / "drawn").glob("a-small*.png"))
    assert [name.removeprefix("a-small-red-circle-00") for name in pictures] == [
        "1-attention.png",
        "1.png",
        "2-attention.png",
        "2.png",
    ]
    status, printed = run_command("sample", *options, "attention=true", "attention_layer=3")
    assert (status, "attention_layer=3 is not a layer of the model" in printed) == (2, True)


def test_words_are_joined_tokens_in_order(dalle):
    caption = "a naïve RED  circle, isn't it"
    words = dalle.tokenizer.words(caption)
    assert [word for word, _ in words] == ["a", "naïve", "red", "circle", ",", "isn", "'t", "it"]
    assert [token for _, ids in words for token in ids] == dalle.tokenizer.encode(caption)
    assert max(len(ids) for _, ids in words) > 1
