import pytest
import torch
from torch import Tensor

from dalle.models.transformer import Transformer
from dalle.sampling.decode import FREE, generate
from dalle.sampling.filters import Filters
from dalle.sampling.noise import candidate_keys, gumbel_noise

PATTERNS = [["dense"], ["row"], ["column"], ["convolutional"], ["paper"]]


def captions(model: Transformer) -> Tensor:
    return model.stream.captions([[1, 2, 3], [4], [5, 6, 7, 8]])


@torch.no_grad()
def drawn_without_cache(model: Transformer, caption: Tensor, candidates: int, filters: Filters, seed: int) -> Tensor:
    """The definition: the whole stream again for every token."""
    grid, images = model.stream.grid, []
    for row in caption:
        for key in candidate_keys(seed, torch.arange(candidates)):
            image = torch.zeros(1, model.stream.image_positions, dtype=torch.int64)
            for position in range(model.stream.image_positions):
                logits = filters(model(row[None], image).image[:, position])
                noise = gumbel_noise(key[None], position, logits.shape[-1])
                image[0, position] = (logits + noise).argmax()
            images.append(image)
    return torch.cat(images).view(len(caption), candidates, grid, grid)


@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
def test_cached_and_uncached_decoding_draw_the_same_tokens(make_transformer, patterns):
    model = make_transformer(patterns=patterns, depth=3)
    filters = Filters(temperature=0.9, top_k=8, top_p=0.95)
    cached = generate(model, captions(model), 3, filters=filters, seed=5)
    assert cached.equal(drawn_without_cache(model, captions(model), 3, filters, seed=5))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16, 64])
def test_candidates_do_not_depend_on_the_batch_size(make_transformer, batch_size):
    model = make_transformer(patterns=["paper"], depth=3, width=32)
    expected = generate(model, captions(model), 16, seed=1, batch_size=48)
    assert generate(model, captions(model), 16, seed=1, batch_size=batch_size).equal(expected)


def test_candidates_do_not_depend_on_how_many_are_drawn_or_from_where(make_transformer):
    model = make_transformer()
    expected = generate(model, captions(model), 16, seed=1)
    assert generate(model, captions(model), 5, seed=1).equal(expected[:, :5])
    assert generate(model, captions(model), 4, seed=1, first=7).equal(expected[:, 7:11])
    assert generate(model, captions(model)[1:2], 16, seed=1).equal(expected[1:2])


def test_candidates_and_seeds_differ(make_transformer):
    model = make_transformer()
    zero, one = (generate(model, captions(model)[:1], 8, seed=seed)[0] for seed in (0, 1))
    assert len({tuple(image.flatten().tolist()) for image in [*zero, *one]}) == 16


def test_temperature_zero_draws_one_picture(make_transformer):
    model = make_transformer()
    images = generate(model, captions(model)[:1], 4, filters=Filters(temperature=0))[0]
    assert all(image.equal(images[0]) for image in images)
    logits = model(captions(model)[:1], images[:1].flatten(1)).image
    assert logits.argmax(-1).equal(images[:1].flatten(1))


def test_a_canvas_keeps_its_tokens_and_leaves_those_before_them_as_they_were(make_transformer):
    model = make_transformer(patterns=["paper"], depth=3)
    free = generate(model, captions(model), 4, seed=2)
    canvas = torch.full((4, 4), FREE)
    canvas[2, 1], canvas[3, 0] = 5, 12
    drawn = generate(model, captions(model), 4, seed=2, canvas=canvas)
    assert (drawn[..., 2, 1] == 5).all()
    assert (drawn[..., 3, 0] == 12).all()
    assert drawn.flatten(2)[..., :9].equal(free.flatten(2)[..., :9])
    assert not drawn.flatten(2)[..., 10:].equal(free.flatten(2)[..., 10:])


def test_a_canvas_with_nothing_free_comes_back(make_transformer):
    model = make_transformer()
    canvas = torch.arange(16).view(4, 4) % 13
    assert generate(model, captions(model)[:1], 1, canvas=canvas)[0, 0].equal(canvas)


@pytest.mark.parametrize(
    ("canvas", "problem"),
    [
        (torch.zeros(3, 4, dtype=torch.int64), r"\(3, 4\) tokens, but the model draws 4 x 4"),
        (torch.full((4, 4), 13), "tokens from 13 to 13; use 0 to 12"),
    ],
)
def test_a_canvas_that_does_not_fit_is_refused(make_transformer, canvas, problem):
    model = make_transformer()
    with pytest.raises(ValueError, match=problem):
        generate(model, captions(model), 1, canvas=canvas)


def test_no_candidates_are_refused(make_transformer):
    model = make_transformer()
    with pytest.raises(ValueError, match="candidates=0"):
        generate(model, captions(model), 0)
