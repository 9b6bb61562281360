from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dalle.cli.sample import metadata
from dalle.models.transformer.model import Transformer
from dalle.sampling.command_config import SampleCommandConfig
from dalle.sampling.decode import MASKED, sample_all_tokens
from dalle.sampling.parallel_decode import DecodingCount
from dalle.sampling.sampling_config import GUESS_NAMES, DecodingConfig
from dalle.sampling.token_guesses import GUESSES

FILTERS = {
    "plain": DecodingConfig(seed=1),
    "filtered": DecodingConfig(seed=2, temperature=0.8, top_k=9, top_p=0.9, min_p=0.05),
    "guided": DecodingConfig(seed=3, guidance=2.0),
    "greedy": DecodingConfig(temperature=0),
    "in batches": DecodingConfig(seed=4, batch_size=2),
}


def captions(model: Transformer) -> Tensor:
    return model.sequence.pad_captions([[1, 2, 3], [4]])


def half_given(captions: int, candidates: int) -> Tensor:
    """Return canvases in which about half the cells are given, different for each image."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(13, (captions, candidates, 4, 4), generator=generator)
    return torch.where(torch.rand(tokens.shape, generator=generator) < 0.5, MASKED, tokens)


@pytest.mark.parametrize("on_canvas", [False, True])
@pytest.mark.parametrize("guess", GUESS_NAMES)
@pytest.mark.parametrize("config", FILTERS.values(), ids=FILTERS)
def test_parallel_and_sequential_decoding_sample_the_same_tokens(make_transformer, config, guess, on_canvas):
    model = make_transformer(patterns=["row", "column", "convolutional"], depth=3)
    canvas = half_given(2, 3) if on_canvas else None
    expected = sample_all_tokens(model, captions(model), 3, config, canvas=canvas)
    parallel = replace(config, decoding="parallel", window=5, guess=guess)
    assert sample_all_tokens(model, captions(model), 3, parallel, canvas=canvas).equal(expected)


@pytest.mark.parametrize("window", [1, 2, 16])
def test_every_window_samples_the_same_tokens(make_transformer, window):
    model = make_transformer()
    expected = sample_all_tokens(model, captions(model), 2, DecodingConfig(seed=5))
    assert sample_all_tokens(
        model, captions(model), 2, DecodingConfig(seed=5, decoding="parallel", window=window)
    ).equal(expected)


def test_windows_take_fewer_passes_where_guesses_are_right(make_transformer):
    """With all but one token given, which are guesses that are always right, passes move on by whole windows."""
    model = make_transformer()
    canvas = torch.zeros(4, 4, dtype=torch.int64)
    canvas[-1, -1] = MASKED
    count, told = DecodingCount(), []
    config = DecodingConfig(decoding="parallel", window=4)
    sample_all_tokens(model, captions(model), 2, config, canvas=canvas, count=count, on_progress=told.append)
    assert count == DecodingCount(images=4, tokens=4 * 16, passes=4 * 4)
    assert count.tokens_per_pass == 4
    assert sum(told) == pytest.approx(4)


@pytest.mark.parametrize("decoding", ["sequential", "parallel"])
@pytest.mark.parametrize("on_canvas", [False, True])
def test_tokens_that_are_shown_are_final(make_transformer, decoding, on_canvas):
    model = make_transformer()
    shown: list[Tensor] = []
    canvas = half_given(2, 3) if on_canvas else None
    config = DecodingConfig(seed=6, decoding=decoding, window=5)
    images = sample_all_tokens(
        model, captions(model), 3, config, canvas=canvas, on_tokens=lambda grids: shown.append(grids.clone())
    )
    numbers = [int((grids != MASKED).sum()) for grids in shown]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 1
    for grids in shown:
        assert torch.where(grids == MASKED, images, grids).equal(images)
    assert shown[-1].equal(images)


def test_a_canvas_without_masked_tokens_is_returned(make_transformer):
    model = make_transformer()
    canvas = torch.ones(4, 4, dtype=torch.int64)
    assert sample_all_tokens(model, captions(model), 2, DecodingConfig(decoding="parallel"), canvas=canvas).eq(1).all()


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"window": 17}, "window of 17 positions does not fit an image of 16 tokens"),
        ({"window": 0}, "window=0 guesses no token"),
        ({"guess": "luck"}, "unknown guess=luck; choose one of above"),
        ({"decoding": "both"}, "unknown decoding=both; choose one of sequential"),
    ],
)
def test_invalid_settings_are_rejected(make_transformer, setting, message):
    model = make_transformer()
    with pytest.raises(ValueError, match=message):
        sample_all_tokens(model, captions(model), 1, DecodingConfig(**{"decoding": "parallel", **setting}))


def test_the_names_of_guesses_are_those_of_the_config():
    assert tuple(GUESSES) == GUESS_NAMES


def test_the_command_prints_passes_and_draws_the_same_images(checkpoints, run_command, tmp_path):
    def sample(*options: str) -> tuple[str, list]:
        out = tmp_path / f"out{len(options)}"
        options = (f"checkpoint={checkpoints}", "caption=three green triangles", "candidates=4", "keep=2", *options)
        code, printed = run_command("sample", *options, f"out={out}")
        assert code == 0, printed
        return printed, [image.read_bytes() for image in sorted(out.glob("*.png")) if image.name != "grid.png"]

    sequential, parallel = sample("decoding=sequential"), sample("decoding=parallel", "window=4")
    assert parallel[1] == sequential[1]
    assert "decoding  16 passes per image, 1.0 tokens per pass, " in sequential[0]
    assert "tokens per pass" in parallel[0] and "1.0 tokens per pass" not in parallel[0]


@pytest.mark.parametrize(
    ("decoding", "precision", "recorded"),
    [("parallel", torch.bfloat16, True), ("parallel", torch.float32, False), ("sequential", torch.bfloat16, False)],
)
def test_parallel_decoding_is_recorded_where_it_rounds_differently(decoding, precision, recorded):
    config = SampleCommandConfig(caption="a cat", decoding=decoding, window=8)
    assert (metadata(config, {}, precision).keys() >= {"decoding", "window", "guess"}) == recorded
    assert recorded or "decoding" not in metadata(config, {}, precision)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_batch_size_is_recorded_where_it_changes_rounding(precision):
    settings = metadata(SampleCommandConfig(caption="a cat", batch_size=3), {}, precision)
    assert settings.get("batch_size") == (None if precision == torch.float32 else 3)
