"""Losses: densities integrate to one, and values match the paper's formulas."""

import math
from math import inf, nan

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical, kl_divergence

from dalle.losses import (
    LikelihoodConfig,
    contrastive,
    kl_to_uniform,
    laplace_nll,
    logit_laplace_nll,
    normal_nll,
    per_pixel_loss,
    quantisation_error,
    token_nll,
)
from dalle.models.dvae.model import mean_image
from dalle.models.dvae.relaxation import negative_squared_distance
from dalle.models.linear_cross_entropy import IGNORED


def constant_params(mu: float, log_scale: float, count: int) -> torch.Tensor:
    """Return likelihood parameters (1, 6, 1, count), equal for each colour and pixel."""
    return torch.tensor([mu] * 3 + [log_scale] * 3)[None, :, None, None].expand(1, 6, 1, count)


def everywhere(values: torch.Tensor) -> torch.Tensor:
    """Return n pixel values as a grey image (1, 3, 1, n)."""
    return values[None, None, None].expand(1, 3, 1, -1)


def random_params_and_images(batch: int = 2, side: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 6, side, side, generator=generator), torch.rand(batch, 3, side, side, generator=generator)


# --- likelihoods -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [-2.0, 0.0, 1.5])
@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0])
def test_logit_laplace_density_integrates_to_one(mu, scale):
    logit = torch.linspace(-14, 14, 20_001, dtype=torch.float64)
    x = logit.sigmoid()  # close to both ends, where the density may be steep
    images = (x - 0.1) / 0.8  # what `map_pixels` makes x of
    nll = logit_laplace_nll(constant_params(mu, math.log(scale), len(x)), everywhere(images))
    for colour in (-nll[0, :, 0].double()).exp():
        assert torch.trapezoid(colour, x).item() == pytest.approx(1, abs=2e-3)


def test_logit_laplace_matches_the_papers_formula():
    likelihood_params, images = random_params_and_images()
    mu, scale = likelihood_params[:, :3].double(), likelihood_params[:, 3:].double().exp()
    x = 0.8 * images.double() + 0.1
    density = 1 / (2 * scale * x * (1 - x)) * torch.exp(-(torch.log(x / (1 - x)) - mu).abs() / scale)  # Equation 2
    torch.testing.assert_close(
        logit_laplace_nll(likelihood_params, images), -density.log().float(), rtol=1e-5, atol=1e-5
    )


def test_black_and_white_pixels_have_finite_likelihoods_and_gradients():
    likelihood_params = torch.randn(1, 6, 1, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    nll = logit_laplace_nll(likelihood_params, everywhere(torch.tensor([0.0, 1.0])))
    (gradient,) = torch.autograd.grad(nll.sum(), likelihood_params)
    assert torch.isfinite(nll).all()
    assert torch.isfinite(gradient).all()


def test_scale_floor_bounds_the_scale_from_below():
    likelihood_params, images = random_params_and_images()
    floor = 0.3
    raised = torch.cat([likelihood_params[:, :3], likelihood_params[:, 3:].clamp(min=floor)], dim=1)
    assert (likelihood_params[:, 3:] < floor).any()
    assert logit_laplace_nll(likelihood_params, images, floor).equal(logit_laplace_nll(raised, images))
    assert logit_laplace_nll(likelihood_params, images, -9.0).equal(logit_laplace_nll(likelihood_params, images))


@pytest.mark.parametrize("scale", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("mu", [-3.0, 0.0, 0.7])
@pytest.mark.parametrize("nll", [normal_nll, laplace_nll])
def test_normal_and_laplace_densities_integrate_to_one(nll, mu, scale):
    likelihood_params = constant_params(mu, 0.0, 20_001)
    middle = (torch.tensor(mu).sigmoid().item() - 0.1) / 0.8  # the decoded pixel; below 0 for mu = -3
    pixels = middle + 14 * scale * torch.linspace(-1, 1, 20_001)
    density = (-nll(likelihood_params, everywhere(pixels), scale)[0, 0, 0].double()).exp()
    assert torch.trapezoid(density, pixels.double()).item() == pytest.approx(1, abs=1e-3)
    assert pixels[density.argmax()].item() == pytest.approx(middle, abs=2e-3 * scale)


def test_squared_and_absolute_errors_are_divided_by_their_scale():
    likelihood_params, images = random_params_and_images()
    likelihood_params[:, :3] = likelihood_params[:, :3].clamp(-2, 2)  # so that nothing is clamped in the picture
    error, scale = mean_image(likelihood_params) - images, 0.2
    normal = torch.distributions.Normal(0.0, scale)
    laplace = torch.distributions.Laplace(0.0, scale)
    torch.testing.assert_close(
        normal_nll(likelihood_params, images, scale), -normal.log_prob(error), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        laplace_nll(likelihood_params, images, scale), -laplace.log_prob(error), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        *(
            ({"scale": scale}, f"likelihood.scale={scale} must be a finite number above 0")
            for scale in (0, -1, nan, inf)
        ),
        *(({"floor": floor}, f"likelihood.floor={floor} must be finite") for floor in (nan, inf, -inf)),
    ],
    ids=str,
)
def test_likelihoods_without_a_density_are_refused(settings, problem):
    with pytest.raises(ValueError, match=problem):
        LikelihoodConfig(**settings)


@pytest.mark.parametrize("nll", [normal_nll, laplace_nll])
def test_decoded_pixels_above_white_have_gradients(nll):
    likelihood_params = constant_params(5.0, 0.0, 1).clone().requires_grad_()  # decoded as more than 1, shown as 1
    (gradient,) = torch.autograd.grad(nll(likelihood_params, torch.ones(1, 3, 1, 1), 0.1).sum(), likelihood_params)
    assert (gradient[:, :3] > 0).all()


# --- divergence and bound --------------------------------------------------------------------------------------


def test_kl_is_zero_for_uniform_and_log_v_for_one_hot():
    flat = torch.full((2, 50, 3, 3), 7.0)
    torch.testing.assert_close(kl_to_uniform(flat), torch.zeros(2, 3, 3), atol=1e-5, rtol=0)
    certain = torch.zeros(2, 50, 3, 3)
    certain[:, 8] = 1e4
    torch.testing.assert_close(kl_to_uniform(certain), torch.full((2, 3, 3), math.log(50)))


def test_kl_matches_categorical_distribution():
    logits = 3 * torch.randn(2, 9, 4, 5, generator=torch.Generator().manual_seed(0))
    q, p = Categorical(logits=logits.movedim(1, -1)), Categorical(logits=torch.zeros(2, 4, 5, 9))
    torch.testing.assert_close(kl_to_uniform(logits), kl_divergence(q, p))
    assert kl_to_uniform(logits).shape == (2, 4, 5)


def test_kl_is_computed_in_float32():
    logits = torch.randn(2, 9, 4, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert kl_to_uniform(logits).equal(kl_to_uniform(logits.float()))


@pytest.mark.parametrize("kl_weight", [0.0, 1.0, 6.6])
def test_kl_weight_is_per_dimension(kl_weight):
    generator = torch.Generator().manual_seed(0)
    nll, kl = torch.randn(5, 3, 32, 32, generator=generator), torch.rand(5, 4, 4, generator=generator)
    expected = nll.mean() + kl_weight / 192 * kl.mean()
    torch.testing.assert_close(per_pixel_loss(nll, kl, kl_weight), expected)


def test_elbo_is_the_mean_over_images_per_dimension():
    nll, kl = torch.full((2, 3, 4, 4), 0.5), torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    nll[1] = 1.5
    bounds = [0.5 * 48 + 2 * 3, 1.5 * 48 + 2 * 7]
    assert per_pixel_loss(nll, kl, weight=2.0).item() == pytest.approx(sum(bounds) / 2 / 48)


def test_quantisation_error_has_the_gradients_of_codebook_and_commitment_loss():
    generator = torch.Generator().manual_seed(0)
    vectors, codebook = torch.randn(2, 5, 3, 4, generator=generator), torch.randn(7, 5, generator=generator)
    vectors.requires_grad_()
    codebook.requires_grad_()
    logits = negative_squared_distance(vectors, codebook)
    found = torch.autograd.grad(quantisation_error(logits).sum(), (vectors, codebook))
    chosen = codebook[logits.argmax(dim=1)].movedim(-1, 1)
    codebook_loss = (vectors.detach() - chosen).square().sum()
    commitment_loss = (vectors - chosen.detach()).square().sum()
    torch.testing.assert_close(found, torch.autograd.grad(codebook_loss + commitment_loss, (vectors, codebook)))


# --- CLIP ------------------------------------------------------------------------------------------------------


def unit_vectors(rows: int, width: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_contrastive_loss_is_the_mean_cross_entropy_of_both_directions():
    images, captions, scale = unit_vectors(5, 8, 0), unit_vectors(5, 8, 1), torch.tensor(14.0)
    total = 0.0
    for i in range(5):
        logits = [scale.item() * torch.dot(images[i], captions[j]).item() for j in range(5)]
        total += math.log(sum(map(math.exp, logits))) - logits[i]
        logits = [scale.item() * torch.dot(images[j], captions[i]).item() for j in range(5)]
        total += math.log(sum(map(math.exp, logits))) - logits[i]
    assert contrastive(images, captions, scale).item() == pytest.approx(total / 10, rel=1e-5)


def test_contrastive_loss_is_symmetric():
    images, captions, scale = unit_vectors(5, 8, 0), unit_vectors(5, 8, 1), torch.tensor(14.0)
    torch.testing.assert_close(contrastive(images, captions, scale), contrastive(captions, images, scale))
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(contrastive(images, captions, scale), contrastive(images[order], captions[order], scale))


def test_contrastive_losses_of_ranks_have_the_mean_and_the_gradients_of_all_pairs():
    inputs = unit_vectors(6, 8, 0).requires_grad_(), unit_vectors(6, 8, 1).requires_grad_(), torch.tensor(14.0)
    inputs[2].requires_grad_()
    images, captions, scale = inputs
    whole = contrastive(images, captions, scale)
    parts = [
        contrastive(images[first : first + 2], captions[first : first + 2], scale, images, captions, first)
        for first in (0, 2, 4)
    ]
    mean = torch.stack(parts).mean()
    torch.testing.assert_close(mean, whole)
    for one, other in zip(torch.autograd.grad(whole, inputs), torch.autograd.grad(mean, inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_contrastive_loss_is_least_for_matching_pairs():
    images, scale = torch.eye(6), torch.tensor(100.0)
    assert contrastive(images, images, scale).item() == pytest.approx(0, abs=1e-6)
    assert contrastive(images, images.roll(1, dims=0), scale).item() == pytest.approx(100, rel=1e-3)
    alike = images[:1].expand(6, 6)
    assert contrastive(alike, alike, scale).item() == pytest.approx(math.log(6))


# --- tokens ----------------------------------------------------------------------------------------------------


def test_token_loss_is_negative_log_probability():
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 6, 3], [2, 2, 5]])
    nll = token_nll(logits, targets)
    assert nll.shape == (2, 3)
    for b in range(2):
        for n in range(3):
            expected = -logits[b, n].softmax(dim=0)[targets[b, n]].log()
            torch.testing.assert_close(nll[b, n], expected)


def test_soft_loss_is_the_expected_token_loss():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 7, generator=generator)
    distribution = torch.randn(2, 3, 7, generator=generator).softmax(dim=-1)
    token_losses = torch.stack([token_nll(logits, torch.full((2, 3), token)) for token in range(7)], dim=-1)
    torch.testing.assert_close(token_nll(logits, distribution), (distribution * token_losses).sum(dim=-1))


def test_ignored_tokens_have_no_loss_and_no_gradient():
    logits = torch.randn(1, 4, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.tensor([[1, IGNORED, 3, IGNORED]])
    nll = token_nll(logits, targets)
    assert (nll[0] == 0).tolist() == [False, True, False, True]
    (gradient,) = torch.autograd.grad(nll.sum(), logits)
    assert (gradient[0] == 0).all(dim=-1).tolist() == [False, True, False, True]
