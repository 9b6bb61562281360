from itertools import product

import pytest
import torch
from torch import Tensor

from dalle.models.transformer.model import Transformer
from dalle.models.transformer.patterns import PATTERNS
from dalle.sampling import likelihood
from dalle.sampling.likelihood import (
    image_log_likelihood,
    marginal_log_likelihood,
    pointwise_mutual_information,
    scoring_batch_size,
)


@pytest.fixture
def tiny(make_transformer) -> Transformer:
    """Return a model of 2 x 2 tokens of 3 kinds: its 81 images can be enumerated."""
    return make_transformer(grid=2, image_vocabulary=3)


@pytest.fixture
def every_picture() -> Tensor:
    return torch.tensor(list(product(range(3), repeat=4))).view(81, 2, 2)


def captions(model: Transformer) -> Tensor:
    return model.sequence.pad_captions([[1, 2, 3], [4], [5, 6, 7, 8]])


def some_pictures(model: Transformer, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    grid = model.sequence.grid
    return torch.randint(model.sequence.image_vocabulary, (count, grid, grid), generator=generator)


@pytest.mark.parametrize("patterns", [*([name] for name in PATTERNS), ["paper"]], ids=str)
@pytest.mark.parametrize("pads", ["learned", "masked"])
@torch.no_grad()
def test_image_likelihood_is_the_product_of_decoding_probabilities(make_transformer, patterns, pads):
    model = make_transformer(patterns=patterns, depth=3, pads=pads)
    caption, tokens = captions(model)[2], some_pictures(model, 5)
    cache = model.new_cache(model.prefill(caption[None]), 5)
    previous, expected = torch.full((5,), model.sequence.start_of_image), torch.zeros(5)
    for position, cell in enumerate(tokens.flatten(1).T):
        logits = model.decode_one_token(previous, position, cache)
        expected += logits.log_softmax(-1)[torch.arange(5), cell]
        previous = cell
    torch.testing.assert_close(image_log_likelihood(model, caption, tokens), expected, atol=1e-4, rtol=1e-5)


def test_image_probabilities_sum_to_one_for_a_caption(tiny, every_picture):
    for caption in captions(tiny):
        assert image_log_likelihood(tiny, caption, every_picture).exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_unconditional_image_probabilities_sum_to_one(tiny, every_picture):
    assert marginal_log_likelihood(tiny, captions(tiny), every_picture).exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_caption_probabilities_sum_to_one_if_references_are_all_captions(tiny):
    every_caption, tokens = captions(tiny), some_pictures(tiny, 7)
    gains = torch.stack([pointwise_mutual_information(tiny, one, tokens, every_caption) for one in every_caption])
    prior = 1 / len(every_caption)
    torch.testing.assert_close((gains.exp() * prior).sum(dim=0), torch.ones(7), atol=1e-4, rtol=0)


def test_caption_equal_to_its_reference_has_zero_gain(tiny):
    caption, tokens = captions(tiny)[1], some_pictures(tiny, 4)
    assert pointwise_mutual_information(tiny, caption, tokens, caption[None]).abs().max() < 1e-5


def test_likelihoods_do_not_depend_on_batch_size(make_transformer):
    model = make_transformer()
    caption, tokens = captions(model)[0], some_pictures(model, 7)
    together = image_log_likelihood(model, caption, tokens)
    torch.testing.assert_close(image_log_likelihood(model, caption, tokens, batch_size=2), together)
    alone = torch.cat([image_log_likelihood(model, caption, picture[None]) for picture in tokens])
    torch.testing.assert_close(alone, together)


def test_logits_in_memory_are_limited(tiny, monkeypatch):
    logits = tiny.sequence.image_positions * tiny.sequence.image_vocabulary
    assert scoring_batch_size(tiny) == 64
    monkeypatch.setattr(likelihood, "MAX_LOGITS", 3 * logits)
    assert scoring_batch_size(tiny) == 3
    monkeypatch.setattr(likelihood, "MAX_LOGITS", logits - 1)
    assert scoring_batch_size(tiny) == 1
