"""FID, KID and Inception score against independent implementations and known cases."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from dalle.evaluation.features import FeatureNetwork, FeatureOutput
from dalle.evaluation.metrics import fid_kid_is as module
from dalle.evaluation.metrics.fid_kid_is import DistributionMetrics
from dalle.seeds import seed_global_generators

WIDTH = 12


@pytest.fixture(autouse=True)
def few_subsets(monkeypatch) -> None:
    monkeypatch.setattr(module, "KID_SUBSETS", 3)  # of up to 1,000 images each, which is slow


@pytest.fixture(scope="module")
def features() -> FeatureNetwork:
    """Placeholder: the tests give its outputs to `DistributionMetrics` directly."""
    return FeatureNetwork("placeholder", nn.Identity(), WIDTH, "none", "0" * 16, "fd_effnet", "kid_effnet", "is_effnet")


def random_features(seed: int, count: int, shift: float = 0.0, stretch: float = 1.0) -> FeatureOutput:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(99))
    values = torch.randn(count, WIDTH, generator=generator) @ mixing * stretch + shift
    return FeatureOutput(values, values[:, :5])


def compute(
    features: FeatureNetwork, real: FeatureOutput, sampled: FeatureOutput, seed: int = 0
) -> tuple[dict[str, float], list[str]]:
    metrics = DistributionMetrics(features, seed)
    for is_real, output in ((True, real), (False, sampled)):
        half = len(output.features) // 2
        for part in (slice(0, half), slice(half, None)):
            metrics.add(FeatureOutput(output.features[part], output.logits[part]), is_real)
    return metrics.compute()


def frechet_distance(real: np.ndarray, sampled: np.ndarray) -> float:
    """Heusel et al. 2017, as published: with the matrix square root of the product of covariances."""
    one, other = np.cov(real, rowvar=False), np.cov(sampled, rowvar=False)
    apart = ((real.mean(axis=0) - sampled.mean(axis=0)) ** 2).sum()
    return float(apart + np.trace(one + other - 2 * scipy.linalg.sqrtm(one @ other).real))


@pytest.mark.parametrize(("shift", "stretch"), [(0.0, 1.0), (0.5, 1.0), (0.0, 1.5), (2.0, 0.3)])
def test_frechet_distance_agrees_with_numpy_and_scipy(features, shift, stretch):
    real, sampled = random_features(0, 300), random_features(1, 1000, shift, stretch)
    numbers, notes = compute(features, real, sampled)
    expected = frechet_distance(real.features.double().numpy(), sampled.features.double().numpy())
    assert numbers["fd_effnet"] == pytest.approx(expected, rel=1e-4)
    assert notes == []


def test_frechet_distance_of_shifted_features(features):
    """Equal covariances cancel: it is the squared distance of the means."""
    real = random_features(0, 200)
    numbers, _ = compute(features, real, FeatureOutput(real.features + 3.0, real.logits))
    assert numbers["fd_effnet"] == pytest.approx(9 * WIDTH, rel=1e-4)


def polynomial_mmd(real: np.ndarray, sampled: np.ndarray) -> float:
    """Binkowski et al. 2018, Section 4: unbiased, kernel (x.y / d + 1)^3."""
    within = []
    for values in (real, sampled):
        kernel = (values @ values.T / WIDTH + 1) ** 3
        within.append((kernel.sum() - np.trace(kernel)) / (len(values) * (len(values) - 1)))
    return float(sum(within) - 2 * ((real @ sampled.T / WIDTH + 1) ** 3).mean())


def test_kid_is_the_mean_over_seeded_subsets_with_their_standard_deviation(features):
    real, sampled = random_features(0, 80), random_features(1, 90, shift=0.3)
    numbers, _ = compute(features, real, sampled, seed=5)
    seed_global_generators("metric subsets", 5)
    subsets = [[torch.randperm(len(output.features))[:40] for output in (real, sampled)] for _ in range(3)]
    expected = [
        polynomial_mmd(real.features[one].double().numpy(), sampled.features[other].double().numpy())
        for one, other in subsets
    ]
    assert numbers["kid_effnet"] == pytest.approx(np.mean(expected), rel=1e-3)
    assert numbers["kid_effnet_std"] == pytest.approx(np.std(expected), rel=1e-2)


def test_few_images_bias_the_frechet_distance_but_not_kid(features):
    """Sets from one distribution: the Frechet distance of 40 images is far from 0, KID is not."""

    def scaled(seed: int, count: int, shift: float = 0.0) -> FeatureOutput:
        return FeatureOutput(random_features(seed, count, shift).features / 10, random_features(seed, count).logits)

    few = [compute(features, scaled(2 * seed, 40), scaled(2 * seed + 1, 40))[0] for seed in range(4)]
    many = compute(features, scaled(0, 1000), scaled(1, 1000))[0]
    apart = compute(features, scaled(0, 40), scaled(1, 40, shift=5))[0]
    assert min(numbers["fd_effnet"] for numbers in few) > 10 * many["fd_effnet"]
    assert abs(np.mean([numbers["kid_effnet"] for numbers in few])) < 0.02 * apart["kid_effnet"]


def test_inception_score_counts_equally_frequent_classes(features):
    """Confident predictions of five equally frequent classes have a score of 5; of a single class, 1."""
    logits = torch.eye(5).repeat(200, 1) * 20
    sampled = random_features(1, 1000).features
    five, one = (FeatureOutput(sampled, predictions) for predictions in (logits, logits[:1].expand(1000, 5)))
    assert compute(features, random_features(0, 20), five)[0]["is_effnet"] == pytest.approx(5, rel=0.03)
    assert compute(features, random_features(0, 20), one)[0]["is_effnet"] == pytest.approx(1)


@pytest.mark.parametrize(("images", "splits"), [(64, 1), (199, 1), (250, 2), (1000, 10), (5000, 10)])
def test_few_images_are_split_less_for_the_inception_score(features, images, splits):
    """One image of each class: the score of a split is at most the number of its images, so tiny ones say nothing."""
    metrics = DistributionMetrics(features, seed=0)
    metrics.add(random_features(0, 4), real=True)
    logits = torch.eye(64).repeat(100, 1)[:images] * 50
    metrics.add(FeatureOutput(random_features(1, images).features, logits), real=False)
    numbers, notes = metrics.compute()
    assert metrics.settings()["inception_score"] == {"splits": splits}
    assert ("is_effnet_std" in numbers) == (splits > 1)
    (note,) = [sentence for sentence in notes if sentence.startswith("is_effnet is that of")] or [""]
    assert bool(note) == (splits < 10) and (splits in (1, 10) or f"mean of {splits} splits" in note)
    if images == 64:
        assert numbers["is_effnet"] == pytest.approx(64, rel=1e-4)


def test_subsets_depend_on_the_seed_and_global_generators_are_restored(features):
    real, sampled = random_features(0, 1010), random_features(1, 1010, shift=0.3)
    before = torch.random.get_rng_state()
    first, again, other = (compute(features, real, sampled, seed)[0] for seed in (0, 0, 1))
    assert first == again
    assert first["kid_effnet"] != other["kid_effnet"]
    assert first["fd_effnet"] == other["fd_effnet"]
    assert torch.random.get_rng_state().equal(before)


@pytest.mark.parametrize(("real", "sampled", "fewest"), [(12, 300, 12), (300, 9, 9)])
def test_note_on_missing_frechet_distance_with_too_few_images(features, real, sampled, fewest):
    numbers, (note, *_) = compute(features, random_features(0, real), random_features(1, sampled))
    assert "fd_effnet" not in numbers
    assert "kid_effnet" in numbers
    assert f"more than 12 images in each set, but there are {fewest}" in note
    assert "does not have full rank" in note
    assert "Use kid_effnet" in note


def test_frechet_distance_needs_more_images_than_features(features):
    numbers, notes = compute(features, random_features(0, 13), random_features(1, 13))
    assert "fd_effnet" in numbers
    assert notes == ["No is_effnet: it needs 20 sampled images."]


def test_fewer_than_four_images_have_no_kid(features):
    numbers, notes = compute(features, random_features(0, 3), random_features(1, 30))
    assert set(numbers) == {"is_effnet"}  # of one split, which has no standard deviation
    assert notes[1] == "No kid_effnet: it needs 4 images in each set, but there are 3."


def test_settings_have_everything_that_the_numbers_depend_on(features):
    metrics = DistributionMetrics(features, seed=7)
    metrics.add(random_features(0, 30), real=True)
    metrics.add(random_features(1, 20), real=False)
    settings = metrics.settings()
    assert (settings["features"], settings["features_digest"], settings["features_resize"]) == (
        "placeholder",
        "0" * 16,
        "none",
    )
    assert (settings["real_images"], settings["sampled_images"], settings["seed"]) == (30, 20, 7)
    assert settings["kid"]["subset_size"] == 10
    assert settings["kid"]["subsets"] == 3
    assert settings["torchmetrics"].count(".") >= 2
