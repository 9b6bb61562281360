import pytest
import torch
from every_pattern import MODELS
from torch import Tensor

from dalle.models.transformer.model import Transformer

CHANGES = [
    *MODELS,
    {"patterns": ["paper"], "pads": "masked", "image_position_embedding": "own"},
    {"patterns": ["paper"], "attention_normalisation": "separate", "qk_norm": True},
]


def inputs(model: Transformer, images: int) -> tuple[Tensor, Tensor]:
    """Return two captions, and the image tokens of `images` images, half of them for each caption."""
    generator = torch.Generator().manual_seed(1)
    shape = (images, model.sequence.image_positions)
    tokens = torch.randint(model.sequence.image_vocabulary, shape, generator=generator)
    return model.sequence.pad_captions([[1, 2, 3], [4]]), tokens


@torch.no_grad()
def one_by_one(model: Transformer, captions: Tensor, tokens: Tensor) -> Tensor:
    """Reference: the logits of every position, by `decode_one_token`: (b, I, v)."""
    cache = model.new_cache(model.prefill(captions), len(tokens) // len(captions))
    previous = model.sequence.image_inputs(tokens)
    steps = [model.decode_one_token(previous[:, position], position, cache) for position in range(tokens.shape[1])]
    return torch.stack(steps, dim=1)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("changes", CHANGES, ids=str)
@torch.no_grad()
def test_windows_with_wrong_guesses_at_own_positions_equal_one_token_decoding(make_transformer, changes, size):
    """Each row moves on by its own steps, and a window's tokens after the step are wrong, as rejected guesses are."""
    model = make_transformer(depth=3, **changes)
    captions, tokens = inputs(model, images=4)
    expected = one_by_one(model, captions, tokens)
    cache = model.new_window_cache(model.prefill(captions), 2, size)
    generator, starts, last = torch.Generator().manual_seed(2), torch.zeros(4, dtype=torch.int64), tokens.shape[1] - 1
    correct = model.sequence.image_inputs(tokens)  # (b, I)

    seen = torch.zeros_like(expected)
    finished = torch.zeros(4, dtype=torch.bool)
    while not finished.all():
        kept = torch.randint(1, size + 1, (4,), generator=generator)
        positions = starts[:, None] + torch.arange(size)
        wrong = torch.randint(model.sequence.image_vocabulary, positions.shape, generator=generator)
        previous = torch.where(torch.arange(size) < kept[:, None], correct.gather(1, positions.clamp(max=last)), wrong)
        logits = model.decode_window(previous, starts, cache)
        for row, (start, count) in enumerate(zip(starts.tolist(), kept.tolist(), strict=True)):
            end = min(start + count, last + 1)
            seen[row, start:end] = logits[row, : end - start]
        finished |= starts + kept > last
        starts = (starts + kept).clamp(max=last)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [0, 17])
def test_a_window_that_does_not_fit_the_image_is_rejected(make_transformer, size):
    model = make_transformer()
    with pytest.raises(ValueError, match=f"window of {size} positions .* 1 to 16"):
        model.new_window_cache(model.prefill(inputs(model, 2)[0]), 1, size)
