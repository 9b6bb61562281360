from dataclasses import replace

import pytest
import torch

from dalle.sampling.decode import sample_all_tokens
from dalle.sampling.decoding_choice import PASS_COST, TOKENS_PER_PASS, best_window, choose_method, expected_gain
from dalle.sampling.memory import decoding_memory
from dalle.sampling.parallel_decode import DecodingCount, recorded_settings
from dalle.sampling.pipeline import DALLE
from dalle.sampling.sampling_config import GB, DecodingConfig, SamplingConfig

CPU = torch.device("cpu")
AUTO = DecodingConfig(decoding="auto")


def chosen(config: DecodingConfig = AUTO, images: int = 1, positions: int = 256, **others) -> str:
    return choose_method(
        config, images, positions, others.get("device", CPU), others.get("precision", torch.float32)
    ).decoding


def test_auto_is_parallel_for_one_image_and_sequential_for_many():
    assert chosen() == "parallel"
    assert chosen(images=64) == "sequential"
    assert chosen(replace(AUTO, batch_size=1), images=64) == "parallel"


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ({"precision": torch.bfloat16}, "16 bits"),
        ({"device": torch.device("cuda")}, "measured on cuda"),
        ({"positions": 4}, "larger than an image of 4 tokens"),
    ],
)
def test_auto_is_sequential_where_images_or_speed_are_unsure(others, reason):
    values = {"positions": 256, "device": CPU, "precision": torch.float32} | others
    choice = choose_method(replace(AUTO, window=8), 1, **values)
    assert choice.decoding == "sequential" and reason in choice.reason


@pytest.mark.parametrize("window", [1, 32])
def test_auto_is_sequential_for_windows_without_figures(window):
    assert chosen(replace(AUTO, window=window)) == "sequential"


@pytest.mark.parametrize("decoding", ["auto", "parallel"])
def test_the_window_is_that_of_the_largest_expected_gain_unless_it_is_set(decoding):
    config = replace(AUTO, decoding=decoding)
    for images in (1, 2):
        choice = choose_method(config, images, 256, CPU, torch.float32)
        gains = {window: expected_gain(window, images) or 0 for window in TOKENS_PER_PASS}
        assert choice.apply(config).window == max(gains, key=lambda window: gains[window])
        assert choose_method(replace(config, window=4), images, 256, CPU, torch.float32).window == 4


@pytest.mark.parametrize(("sequences", "positions"), [(1, 3), (1, 9), (64, 256), (1000, 16)])
def test_a_chosen_window_fits_the_image_for_any_number_of_images(sequences, positions):
    window = best_window(sequences, positions)
    assert window in TOKENS_PER_PASS or window == positions
    assert 1 <= window <= positions


@pytest.mark.parametrize("decoding", ["sequential", "parallel"])
def test_a_set_method_is_kept(decoding):
    assert {chosen(replace(AUTO, decoding=decoding), images) for images in (1, 64)} == {decoding}


def test_expected_gain_never_rises_with_the_number_of_sequences():
    for window in (4, 6, 8, 16):
        gains = [expected_gain(window, sequences) for sequences in (1, 2, 3, 4)]
        numbers = [gain for gain in gains if gain is not None]
        assert len(numbers) == 4 and numbers == sorted(numbers, reverse=True)
    assert expected_gain(6, 1) == TOKENS_PER_PASS[4] / PASS_COST[8][1]


@pytest.mark.parametrize("candidates", [1, 8])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_auto_samples_the_tokens_of_sequential_decoding(make_transformer, candidates, guidance):
    model, count = make_transformer(), DecodingCount()
    captions = model.sequence.pad_captions([[1, 2, 3]])
    config = DecodingConfig(seed=1, guidance=guidance, window=4)
    expected = sample_all_tokens(model, captions, candidates, config)
    auto = replace(config, decoding="auto")
    assert sample_all_tokens(model, captions, candidates, auto, count=count).equal(expected)
    assert count.images == candidates and count.tokens == 16 * candidates
    assert (count.passes < count.tokens) == (chosen(auto, candidates, 16) == "parallel")


def test_auto_is_sequential_if_parallel_decoding_does_not_fit_into_memory(checkpoints):
    dalle = DALLE.load(checkpoints)
    needs = decoding_memory(dalle.transformer, window=4)
    for allowed, expected in ((1.01, "parallel"), (0.99, "sequential")):
        memory = str((needs.total(1) - needs.weights) * allowed / GB)
        config = SamplingConfig(candidates=1, keep=1, decoding="auto", guidance=1.0, window=4, memory=memory)
        assert dalle.choose_decoding(1, config).choice.decoding == expected
        assert dalle.generate("a red circle", config).num_sampled == 1


def test_auto_is_never_recorded():
    """It is sequential in 16 bits, and in float32 the images are the same."""
    assert recorded_settings(AUTO, torch.bfloat16) == recorded_settings(AUTO, torch.float32) == {}


def test_the_command_prints_the_choice_and_draws_the_same_images(checkpoints, run_command, tmp_path):
    options = (f"checkpoint={checkpoints}", "caption=a red circle", "candidates=1", "keep=1", "guidance=1", "window=4")
    printed, images = {}, {}
    for decoding in ("sequential", "auto"):
        code, printed[decoding] = run_command("sample", *options, f"decoding={decoding}", f"out={tmp_path / decoding}")
        assert code == 0, printed
        images[decoding] = next(path for path in (tmp_path / decoding).glob("*.png") if path.name != "grid.png")
    assert images["auto"].read_bytes() == images["sequential"].read_bytes()
    assert "decoding  parallel: for 1 image at a time" in printed["auto"]
    assert "tokens per pass" in printed["auto"]
    assert printed["sequential"].count("decoding") == 1  # the choice is not printed, as there was none
    assert "decoding  16 passes per image, 1.0 tokens per pass" in printed["sequential"]
