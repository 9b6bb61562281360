"""Diffusion decoder: flow matching, the U-Net's conditions, and checkpoints."""

from dataclasses import replace

import pytest
import torch

from dalle.checkpoint import CheckpointError
from dalle.models.decoder.flow import MIN_TIME, integrate, interpolate, stratified_times, velocity
from dalle.models.decoder.model import MIN_SCALE, Condition, DecoderConfig, DiffusionDecoder, condition_on
from dalle.models.dvae.model import DiscreteVAE, DVAEConfig

SIZES = DecoderConfig(
    width=8, levels=2, blocks=1, patch=1, residual_scale=0.5, image_vocabulary=13, code_channels=8, code_side=2, grid=4
)


@pytest.fixture(scope="module")
def dvae() -> DiscreteVAE:
    torch.manual_seed(0)
    return DiscreteVAE(
        DVAEConfig(vocabulary=13, width=8, groups=2, blocks_per_group=1, decoder_input=8, gain=1.0)
    ).eval()


def randomised(config: DecoderConfig = SIZES) -> DiffusionDecoder:
    """Return a decoder whose layers that start at zero have random weights."""
    torch.manual_seed(1)
    decoder = DiffusionDecoder(config).eval()
    for weight in decoder.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.2)
    return decoder


def noise(count: int, grid: tuple[int, int] = (4, 4)) -> torch.Tensor:
    return torch.randn(count, 3, 2 * grid[0], 2 * grid[1], generator=torch.Generator().manual_seed(2))


def tokens(count: int, grid: tuple[int, int] = (4, 4)) -> torch.Tensor:
    return torch.randint(13, (count, *grid), generator=torch.Generator().manual_seed(3))


def test_paths_lead_from_data_to_noise():
    data, ends = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert interpolate(data, ends, torch.zeros(2)).equal(data)
    assert torch.allclose(interpolate(data, ends, torch.ones(2)), ends)


def test_the_velocity_of_a_path_is_noise_minus_data():
    data, ends = torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4)
    time = torch.tensor([MIN_TIME, 0.4, 1.0])
    found = velocity(interpolate(data, ends, time), data, time)
    assert torch.allclose(found, ends - data, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_integration_is_eulers_method(steps):
    """Literal: x <- x - velocity / steps, at times 1, 1 - 1 / steps, ..."""

    def predict(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) + time[:, None, None, None]

    x = start = torch.randn(2, 3, 4, 4)
    for step in range(steps):
        time = torch.full((2,), 1 - step / steps)
        x = x - (x - predict(x, time)) / time[:, None, None, None] / steps
    assert torch.allclose(integrate(predict, start, steps), x, atol=1e-5)


def test_a_perfect_prediction_is_reached_in_any_number_of_steps():
    data = torch.randn(2, 3, 4, 4)
    for steps in (1, 3, 8):
        assert torch.allclose(integrate(lambda x, time: data, torch.randn(2, 3, 4, 4), steps), data, atol=1e-6)


def test_times_of_a_batch_cover_all_intervals():
    times = stratified_times(16, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert sorted((times * 16).int().tolist()) == list(range(16))
    assert times.tolist() != sorted(times.tolist())


def test_in_one_step_an_untrained_decoder_returns_the_reconstruction_of_the_dvae(dvae):
    decoder = DiffusionDecoder(SIZES).eval()
    with torch.no_grad():
        assert torch.allclose(decoder.decode(dvae, tokens(2), noise(2), steps=1), dvae.decode(tokens(2)), atol=1e-6)


def test_an_untrained_decoder_predicts_the_mean_of_normal_residuals(dvae):
    """Literal: the least squares estimate of x from (1 - t) x + t noise, for independent normal x and noise."""
    decoder, condition = DiffusionDecoder(SIZES).eval(), condition_on(dvae, tokens(1))
    x, ends = torch.randn(2, 400, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    for time in (0.1, 0.5, 0.9):
        noisy = interpolate(x, ends, torch.full((400,), time))
        with torch.no_grad():
            found = decoder(noisy[:1], torch.tensor([time]), *condition)
        slope = (noisy * x).sum() / noisy.square().sum()
        assert torch.allclose(found, slope * noisy[:1], atol=0.05)


def test_the_scale_follows_the_contrast_of_the_reconstruction():
    decoder = DiffusionDecoder(SIZES)
    image = torch.zeros(1, 3, 16, 16)
    image[..., 8:] = 1
    scale = decoder.local_scale(image)[0, 0]
    assert scale.min() == scale[0, 0] == pytest.approx(0.5 * MIN_SCALE)  # flat
    assert 0.9 * 0.5 < scale.max() == scale[5, 8] < 0.5  # at the edge
    assert (scale[:, 6:10] > 0.4).all() and (scale[:, :6] < 0.02).all() and (scale[:, 10:] < 0.02).all()


def test_images_depend_on_tokens_reconstruction_and_noise(dvae):
    decoder = randomised()
    with torch.no_grad():
        condition, time = condition_on(dvae, tokens(1)), torch.tensor([0.5])
        plain = decoder(noise(1), time, *condition)
        for changed in (
            decoder(noise(2)[1:], time, *condition),
            decoder(noise(1), torch.tensor([0.9]), *condition),
            decoder(noise(1), time, condition.reconstruction.flip(-1), condition.codes),
            decoder(noise(1), time, *Condition(condition.reconstruction, condition.codes.flip(-1))),
        ):
            assert not torch.allclose(plain, changed, atol=1e-4)


@pytest.mark.parametrize("grid", [(4, 4), (4, 7), (6, 4)])
def test_an_image_does_not_depend_on_its_batch_and_may_have_any_size(dvae, grid):
    decoder = randomised()
    with torch.no_grad():
        together = decoder.decode(dvae, tokens(3, grid), noise(3, grid), steps=3)
        alone = decoder.decode(dvae, tokens(3, grid)[1:2], noise(3, grid)[1:2], steps=3)
    assert together.shape == (3, 3, 2 * grid[0], 2 * grid[1])
    assert together.min() >= 0 and together.max() <= 1
    assert torch.allclose(together[1:2], alone, atol=1e-5)


def test_tokens_outside_the_codebook_are_refused(dvae):
    with pytest.raises(ValueError, match="13"):
        DiffusionDecoder(SIZES).decode(dvae, torch.full((1, 4, 4), 13), noise(1), steps=1)


def test_a_saved_decoder_loads_with_the_same_outputs(dvae, tmp_path):
    decoder = randomised()
    decoder.save(tmp_path / "decoder")
    loaded = DiffusionDecoder.load(tmp_path / "decoder")
    with torch.no_grad():
        expected = decoder.decode(dvae, tokens(1), noise(1), steps=2)
        assert loaded.decode(dvae, tokens(1), noise(1), steps=2).equal(expected)


def test_another_kind_of_checkpoint_is_refused(dvae, tmp_path):
    dvae.save(tmp_path / "dvae")
    with pytest.raises(CheckpointError, match="decoder"):
        DiffusionDecoder.load(tmp_path / "dvae")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 12}, "multiple of 8"),
        ({"residual_scale": 0.0}, "residual_scale=0.0 must be a finite number above 0"),
        ({"residual_scale": float("nan")}, "residual_scale=nan must be a finite number above 0"),
        ({"patch": 8, "levels": 2, "code_side": 8}, "must divide the 8 pixels of a code"),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**changes)


ONE_STEP = replace(SIZES, one_step=True)


def test_a_decoder_of_one_step_depends_on_the_condition_alone():
    decoder = randomised(ONE_STEP)
    generator = torch.Generator().manual_seed(3)
    condition = Condition(torch.rand(2, 3, 8, 8, generator=generator), torch.randn(2, 8, 4, 4, generator=generator))
    first, second = decoder.sample(condition, noise(2)), decoder.sample(condition, -noise(2), steps=1)
    assert first.equal(second)
    assert not torch.allclose(first, condition.reconstruction, atol=0.01)


def test_a_decoder_of_one_step_refuses_several():
    decoder = randomised(ONE_STEP)
    assert decoder.num_steps(None) == decoder.num_steps(1) == 1
    with pytest.raises(ValueError, match="decoder_steps=4: this decoder was trained to decode in one step"):
        decoder.num_steps(4)
    assert randomised().num_steps(None) == 8 and randomised().num_steps(4) == 4


def test_a_decoder_of_one_step_changes_edges_and_leaves_flat_areas():
    decoder = randomised(replace(ONE_STEP, flat_contrast=0.07))
    reconstruction = torch.zeros(1, 3, 8, 16)
    reconstruction[..., 8:] = 1
    codes = torch.randn(1, 8, 4, 8, generator=torch.Generator().manual_seed(3))
    changed = (decoder.refine(decoder, Condition(reconstruction, codes)) != reconstruction).any(dim=1)[0].any(dim=0)
    assert changed.tolist() == [6 <= column < 10 for column in range(16)]  # whose squares of 5 pixels see the edge
    everywhere = randomised(ONE_STEP)
    assert (everywhere.refine(everywhere, Condition(reconstruction, codes)) != reconstruction).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flat_contrast": 0.1}, "flat_contrast=0.1 needs one_step=true"),
        ({"flat_contrast": -0.1, "one_step": True}, "flat_contrast=-0.1 must be a finite number of at least 0"),
    ],
)
def test_contrasts_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SIZES, **changes)
