"""Decoding: the same tokens with and without a cache, in any batches, with callbacks and under autocast."""

from dataclasses import replace

import pytest
import torch
from decoding_inputs import PATTERNS, captions, some_canvases
from torch import Tensor

from dalle.models.cpu_linear import is_packing_supported
from dalle.models.transformer.model import Transformer
from dalle.sampling.decode import MASKED, sample_all_tokens
from dalle.sampling.guidance import empty_caption
from dalle.sampling.gumbel_noise import candidate_noise_keys, gumbel_noise
from dalle.sampling.logits_processors import process_logits
from dalle.sampling.sampling_config import DecodingConfig


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
