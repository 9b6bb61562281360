from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dalle.models.cpu_linear import is_packing_supported
from dalle.models.transformer.model import Transformer
from dalle.models.transformer.patterns import PATTERNS as REGISTRY
from dalle.sampling import decode
from dalle.sampling.decode import MASKED, sample_all_tokens
from dalle.sampling.guidance import empty_caption
from dalle.sampling.gumbel_noise import candidate_noise_keys, gumbel_noise
from dalle.sampling.logits_processors import process_logits
from dalle.sampling.parallel_decode import DecodingCount
from dalle.sampling.sampling_config import DecodingConfig

PATTERNS = [*([name] for name in REGISTRY), ["paper"]]


def captions(model: Transformer) -> Tensor:
    return model.sequence.pad_captions([[1, 2, 3], [4], [5, 6, 7, 8]])


@torch.no_grad()
def drawn_without_cache(model: Transformer, caption: Tensor, candidates: int, config: DecodingConfig) -> Tensor:
    """Reference: compute the whole sequence again for every token."""
    grid, images = model.sequence.grid, []
    empty = empty_caption(model.sequence)
    for row in caption:
        for key in candidate_noise_keys(config.seed, torch.arange(candidates)):
            image = torch.zeros(1, model.sequence.image_positions, dtype=torch.int64)
            for position in range(model.sequence.image_positions):
                logits = model(row[None], image).image[:, position]
                if config.guided:
                    without = model(empty, image).image[:, position]
                    logits = without + config.guidance * (logits - without)
                noise = gumbel_noise(key[None], position, logits.shape[-1])
                image[0, position] = (process_logits(logits, config) + noise).argmax()
            images.append(image)
    return torch.cat(images).view(len(caption), candidates, grid, grid)


def some_canvases(*images: int, size: int = 4) -> Tensor:
    """Return canvases in which about half the cells are free, different for each image."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(13, (*images, size, size), generator=generator)
    return torch.where(torch.rand(tokens.shape, generator=generator) < 0.5, MASKED, tokens)


@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
def test_cached_and_uncached_decoding_sample_the_same_tokens(make_transformer, patterns):
    model = make_transformer(patterns=patterns, depth=3)
    config = DecodingConfig(temperature=0.9, top_k=8, top_p=0.95, seed=5)
    cached = sample_all_tokens(model, captions(model), 3, config)
    assert cached.equal(drawn_without_cache(model, captions(model), 3, config))


@pytest.mark.parametrize("changes", [*({"patterns": patterns} for patterns in PATTERNS), {"pads": "masked"}], ids=str)
@pytest.mark.parametrize("guidance", [0.0, 2.5])
def test_cached_and_uncached_guided_decoding_sample_the_same_tokens(make_transformer, changes, guidance):
    model = make_transformer(depth=3, **changes)
    config = DecodingConfig(min_p=0.02, guidance=guidance, seed=5)
    cached = sample_all_tokens(model, captions(model), 2, config)
    assert cached.equal(drawn_without_cache(model, captions(model), 2, config))


def test_guidance_of_one_needs_no_unconditional_rows(make_transformer, monkeypatch):
    model = make_transformer()
    rows = []
    decode = model.decode_one_token
    monkeypatch.setattr(
        model, "decode_one_token", lambda token, *at, **cache: rows.append(len(token)) or decode(token, *at, **cache)
    )
    expected = sample_all_tokens(model, captions(model), 4, DecodingConfig(seed=3))
    assert sample_all_tokens(model, captions(model), 4, DecodingConfig(seed=3, guidance=1.0)).equal(expected)
    assert set(rows) == {12}
    assert not sample_all_tokens(model, captions(model), 4, DecodingConfig(seed=3, guidance=3.0)).equal(expected)
    assert set(rows) == {12, 24}


def test_guidance_of_zero_ignores_the_caption(make_transformer):
    model = make_transformer()
    images = sample_all_tokens(model, captions(model), 4, DecodingConfig(seed=3, guidance=0.0))
    assert images[0].equal(images[1])
    assert images[0].equal(images[2])


def test_empty_caption_is_prefilled_once_for_all_captions(make_transformer, monkeypatch):
    model = make_transformer()
    read = []
    prefill = model.prefill
    monkeypatch.setattr(model, "prefill", lambda caption: read.append(caption) or prefill(caption))
    sample_all_tokens(model, captions(model), 4, DecodingConfig(guidance=2.0, batch_size=2))
    assert sum((caption == empty_caption(model.sequence)).all().item() for caption in read) == 1


SETTINGS = {
    "plain": (DecodingConfig(seed=1), None),
    "filtered": (DecodingConfig(seed=1, temperature=0.8, top_k=9, top_p=0.9, min_p=0.05), None),
    "guided": (DecodingConfig(seed=1, guidance=2.0), None),
    "on canvases": (DecodingConfig(seed=1), some_canvases(3, 6)),
    "all": (DecodingConfig(seed=1, min_p=0.05, guidance=2.0), some_canvases(3, 6)),
}


@pytest.mark.parametrize("batch_size", [1, 4, 12, 64])
@pytest.mark.parametrize(("config", "canvas"), SETTINGS.values(), ids=SETTINGS)
def test_samples_do_not_depend_on_batch_size(make_transformer, config, canvas, batch_size):
    model = make_transformer(patterns=["paper"], depth=3, width=32)
    expected = sample_all_tokens(model, captions(model), 6, replace(config, batch_size=18), canvas=canvas)
    assert sample_all_tokens(model, captions(model), 6, replace(config, batch_size=batch_size), canvas=canvas).equal(
        expected
    )


def test_samples_do_not_depend_on_number_of_candidates_or_first(make_transformer):
    model = make_transformer()
    expected = sample_all_tokens(model, captions(model), 16, DecodingConfig(seed=1))
    assert sample_all_tokens(model, captions(model), 5, DecodingConfig(seed=1)).equal(expected[:, :5])
    assert sample_all_tokens(model, captions(model), 4, DecodingConfig(seed=1), candidate_offset=7).equal(
        expected[:, 7:11]
    )
    assert sample_all_tokens(model, captions(model)[1:2], 16, DecodingConfig(seed=1)).equal(expected[1:2])
    config, canvas = SETTINGS["all"]
    expected = sample_all_tokens(model, captions(model), 6, config, canvas=canvas)
    alone = sample_all_tokens(model, captions(model)[1:2], 2, config, candidate_offset=3, canvas=canvas[1:2, 3:5])
    assert alone.equal(expected[1:2, 3:5])


def test_first_candidate_can_differ_between_captions(make_transformer):
    model = make_transformer()
    drawn = sample_all_tokens(model, captions(model), 2, DecodingConfig(seed=1), candidate_offset=[0, 5, 7])
    for number, first in enumerate((0, 5, 7)):
        alone = sample_all_tokens(
            model, captions(model)[number : number + 1], 2, DecodingConfig(seed=1), candidate_offset=first
        )
        assert drawn[number].equal(alone[0])


def test_bfloat16_samples_do_not_depend_on_batch_size(make_transformer):
    model = make_transformer(patterns=["paper"], depth=3, width=32)
    if not is_packing_supported(torch.bfloat16):
        pytest.skip("this torch cannot pack bfloat16 layers on this processor")
    config = DecodingConfig(seed=1, batch_size=96)
    drawn = sample_all_tokens(model, captions(model), 32, config, precision=torch.bfloat16)
    assert 0 < (drawn != sample_all_tokens(model, captions(model), 32, config)).float().mean() < 0.9
    config = DecodingConfig(seed=1, batch_size=20)
    assert sample_all_tokens(model, captions(model), 32, config, precision=torch.bfloat16).equal(drawn)


def test_candidates_and_seeds_differ(make_transformer):
    model = make_transformer()
    zero, one = (sample_all_tokens(model, captions(model)[:1], 8, DecodingConfig(seed=seed))[0] for seed in (0, 1))
    assert len({tuple(image.flatten().tolist()) for image in [*zero, *one]}) == 16


def test_temperature_zero_is_deterministic(make_transformer):
    model = make_transformer()
    images = sample_all_tokens(model, captions(model)[:1], 4, DecodingConfig(temperature=0))[0]
    assert all(image.equal(images[0]) for image in images)
    logits = model(captions(model)[:1], images[:1].flatten(1)).image
    assert logits.argmax(-1).equal(images[:1].flatten(1))


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


def test_progress_sums_to_images_and_its_exception_stops_decoding(make_transformer):
    model = make_transformer()
    told = []
    sample_all_tokens(model, captions(model), 5, DecodingConfig(batch_size=2), on_progress=told.append)
    assert sum(told) == pytest.approx(15)
    assert len(told) == 9 * 16

    def enough(_: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        sample_all_tokens(model, captions(model), 5, on_progress=enough)


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


def test_zero_candidates_raise(make_transformer):
    model = make_transformer()
    with pytest.raises(ValueError, match="candidates=0"):
        sample_all_tokens(model, captions(model), 0)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_autocast_of_the_caller_has_no_effect(make_transformer, guidance):
    """A stage's preview may be sampled under autocast, which would round logits and prevent packing of layers."""
    model = make_transformer(patterns=["paper"], depth=3, width=32)
    expected = sample_all_tokens(model, captions(model), 4, DecodingConfig(seed=1, guidance=guidance))
    is_packing_supported.cache_clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert sample_all_tokens(model, captions(model), 4, DecodingConfig(seed=1, guidance=guidance)).equal(expected)


def test_the_token_callback_sees_each_image_grow(make_transformer):
    model, seen = make_transformer(), []
    canvas = torch.full((4, 4), MASKED)
    canvas[2, 1] = 5
    options = {"canvas": canvas, "on_tokens": lambda grids: seen.append(grids.clone())}
    images = sample_all_tokens(model, captions(model), 3, DecodingConfig(seed=2), **options)
    assert len(seen) == 16 and seen[0].shape == images.shape
    for position, grids in enumerate(seen):
        known = torch.arange(16).view(4, 4) <= position
        assert grids[..., known].equal(images[..., known])
        assert grids[..., ~known].equal(canvas[~known].expand(*images.shape[:2], -1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("decoding", ["sequential", "parallel"])
def test_weights_that_are_not_finite_are_refused(make_transformer, decoding, value):
    model = make_transformer()
    model.image_head.weight.data[3] = value
    with pytest.raises(ValueError, match="logits that are NaN or infinite: its weights are damaged"):
        sample_all_tokens(model, captions(model), 2, DecodingConfig(decoding=decoding, window=2))
