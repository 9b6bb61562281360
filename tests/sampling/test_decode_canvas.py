"""Decoding with a canvas: its tokens are kept, and those known from the start are read at once."""

import pytest
import torch
from decoding_inputs import PATTERNS, captions, some_canvases

from dalle.sampling import decode
from dalle.sampling.decode import MASKED, sample_all_tokens
from dalle.sampling.parallel_decode import DecodingCount
from dalle.sampling.sampling_config import DecodingConfig


def test_canvas_keeps_its_tokens_and_earlier_samples(make_transformer):
    model = make_transformer(patterns=["paper"], depth=3)
    free = sample_all_tokens(model, captions(model), 4, DecodingConfig(seed=2))
    canvas = torch.full((4, 4), MASKED)
    canvas[2, 1], canvas[3, 0] = 5, 12
    drawn = sample_all_tokens(model, captions(model), 4, DecodingConfig(seed=2), canvas=canvas)
    assert (drawn[..., 2, 1] == 5).all()
    assert (drawn[..., 3, 0] == 12).all()
    assert drawn.flatten(2)[..., :9].equal(free.flatten(2)[..., :9])
    assert not drawn.flatten(2)[..., 10:].equal(free.flatten(2)[..., 10:])


def test_canvas_without_free_cells_is_returned_unchanged(make_transformer):
    model = make_transformer()
    canvas = torch.arange(16).view(4, 4) % 13
    assert sample_all_tokens(model, captions(model)[:1], 1, canvas=canvas)[0, 0].equal(canvas)


@pytest.mark.parametrize("images", [(), (4,), (3, 4)])
def test_each_image_has_its_own_canvas(make_transformer, images):
    model = make_transformer(patterns=["paper"], depth=3)
    canvas = some_canvases(*images)
    before = canvas.clone()
    drawn = sample_all_tokens(model, captions(model), 4, DecodingConfig(seed=2), canvas=canvas)
    expanded = canvas.expand(3, 4, 4, 4)
    assert drawn[expanded != MASKED].equal(expanded[expanded != MASKED])
    assert drawn.min() >= 0
    assert canvas.equal(before)
    for caption, candidate in ((0, 1), (2, 3)):
        some, cells = captions(model)[caption : caption + 1], expanded[caption, candidate]
        alone = sample_all_tokens(model, some, 1, DecodingConfig(seed=2), candidate_offset=candidate, canvas=cells)
        assert alone[0, 0].equal(drawn[caption, candidate])


def test_cells_after_the_last_free_one_are_not_decoded(make_transformer, monkeypatch):
    model = make_transformer()
    canvas = some_canvases(4)
    canvas.flatten(1)[:, 6:] = 3
    canvas[0, 1, 1] = MASKED  # the last
    positions = []
    decode = model.decode_one_token
    monkeypatch.setattr(
        model, "decode_one_token", lambda token, at, **cache: positions.append(at) or decode(token, at, **cache)
    )
    sample_all_tokens(model, captions(model)[:1], 4, canvas=canvas)
    assert positions == list(range(6))


@pytest.mark.parametrize(("guidance", "recompute_kv"), [(1.0, True), (2.5, False)])
@pytest.mark.parametrize("changes", [*({"patterns": patterns} for patterns in PATTERNS), {"pads": "masked"}], ids=str)
def test_prefilled_and_stepwise_prefixes_sample_the_same_tokens(
    make_transformer, monkeypatch, changes, guidance, recompute_kv
):
    """Canvases of all images, of each candidate and of each image, and prefixes from no position to all but one."""
    model, sizes = make_transformer(depth=3, **changes), decode.prefill_sizes
    generator = torch.Generator().manual_seed(0)
    for known, images, batch_size in (
        (0, (), 12),
        (1, (3, 4), 12),
        (4, (), 3),
        (6, (4,), 12),
        (6, (3, 4), 3),
        (15, (), 12),
    ):
        canvas = torch.randint(13, (*images, 16), generator=generator)
        canvas[..., known:] = MASKED
        config, drawn = DecodingConfig(seed=2, guidance=guidance, batch_size=batch_size), []
        for limit in (lambda *_: (0, 0), lambda *_: (2, 3), sizes):
            monkeypatch.setattr(decode, "prefill_sizes", limit)
            monkeypatch.setattr(decode, "prefill_passes", lambda *_: 0)  # as if it were fewer than steps
            cells = canvas.unflatten(-1, (4, 4))
            drawn.append(sample_all_tokens(model, captions(model), 4, config, canvas=cells, recompute_kv=recompute_kv))
        assert drawn[1].equal(drawn[0]) and drawn[2].equal(drawn[0])


def test_decoding_starts_at_the_first_position_that_an_image_of_the_batch_samples(make_transformer, monkeypatch):
    model = make_transformer(image_vocabulary=1000)
    canvas = torch.full((4, 4, 4), MASKED)
    canvas.flatten(1)[:, :6] = 3
    canvas[1:, 1] = 3
    positions, told, shown, count = [], [], [], DecodingCount()
    step = model.decode_one_token
    monkeypatch.setattr(
        model, "decode_one_token", lambda token, at, **cache: positions.append(at) or step(token, at, **cache)
    )
    options = {"on_progress": told.append, "on_tokens": lambda grids: shown.append(grids.clone()), "count": count}
    with monkeypatch.context() as patch:
        patch.setattr(decode, "pack_linear_layers", lambda model, *_: model)
        sample_all_tokens(model, captions(model)[:1], 4, canvas=canvas, **options)
    assert positions == list(range(6, 16))
    assert len(told) == len(shown) == 10
    assert sum(told) == pytest.approx(4)
    assert (count.images, count.tokens, count.passes) == (4, 40, 40)


@pytest.mark.parametrize(("vocabulary", "first"), [(1, 0), (13, 0), (1000, 8)])
def test_prefixes_are_prefilled_only_in_fewer_passes_than_steps(make_transformer, monkeypatch, vocabulary, first):
    model, positions = make_transformer(image_vocabulary=vocabulary), []
    canvas = torch.randint(vocabulary, (4, 4, 4), generator=torch.Generator().manual_seed(0))
    canvas[:, 2:] = MASKED
    step = model.decode_one_token
    monkeypatch.setattr(decode, "pack_linear_layers", lambda model, *_: model)
    monkeypatch.setattr(
        model, "decode_one_token", lambda token, at, **cache: positions.append(at) or step(token, at, **cache)
    )
    sample_all_tokens(model, captions(model), 4, canvas=canvas)
    assert positions == list(range(first, 16))


@pytest.mark.parametrize(
    ("canvas", "problem"),
    [
        (torch.zeros(3, 4, dtype=torch.int64), r"\(3, 4\) tokens, but the model samples 4 x 4"),
        (torch.zeros(4, 4), "the canvas has values of torch.float32; give tokens as integers"),
        (torch.full((4, 4), 13), "tokens from 13 to 13; use 0 to 12"),
        (torch.zeros(2, 4, 4, dtype=torch.int64), r"for \(2,\) images, but captions=3 and candidates=1"),
    ],
)
def test_canvas_of_wrong_shape_raises(make_transformer, canvas, problem):
    model = make_transformer()
    with pytest.raises(ValueError, match=problem):
        sample_all_tokens(model, captions(model), 1, canvas=canvas)


@pytest.mark.parametrize("decoding", ["sequential", "parallel"])
def test_canvas_of_any_integers_gives_the_same_images(make_transformer, decoding):
    model, config = make_transformer(), DecodingConfig(decoding=decoding)
    canvas = some_canvases(2)
    expected = sample_all_tokens(model, captions(model), 2, config, canvas=canvas)
    for dtype in (torch.int32, torch.int8):
        assert sample_all_tokens(model, captions(model), 2, config, canvas=canvas.to(dtype)).equal(expected)
