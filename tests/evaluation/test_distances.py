"""Distances between sets: the Frechet distance against one computed independently, and what each metric answers to."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from dalle.evaluation.features import Features, Seen
from dalle.evaluation.metrics import distances as module
from dalle.evaluation.metrics.distances import Distances
from dalle.seeds import seed_global_generators

WIDTH = 12


@pytest.fixture(autouse=True)
def few_subsets(monkeypatch) -> None:
    monkeypatch.setattr(module, "SUBSETS", 3)  # of up to 1,000 pictures each, which takes a while


@pytest.fixture(scope="module")
def features() -> Features:
    """A stand-in: what it sees is given to `Distances` directly."""
    return Features("stand-in", nn.Identity(), WIDTH, "none", "0" * 16, "fed", "kid_effnet", "is_effnet")


def drawn_from(seed: int, count: int, shift: float = 0.0, stretch: float = 1.0) -> Seen:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(99))
    values = torch.randn(count, WIDTH, generator=generator) @ mixing * stretch + shift
    return Seen(values, values[:, :5])


def measured(features: Features, real: Seen, drawn: Seen, seed: int = 0) -> tuple[dict[str, float], list[str]]:
    distances = Distances(features, seed)
    for is_real, seen in ((True, real), (False, drawn)):
        half = len(seen.features) // 2
        for part in (slice(0, half), slice(half, None)):
            distances.add(Seen(seen.features[part], seen.logits[part]), is_real)
    return distances.compute()


def frechet_distance(real: np.ndarray, drawn: np.ndarray) -> float:
    """Heusel et al. 2017, as published: with the matrix square root of the product of covariances."""
    one, other = np.cov(real, rowvar=False), np.cov(drawn, rowvar=False)
    apart = ((real.mean(axis=0) - drawn.mean(axis=0)) ** 2).sum()
    return float(apart + np.trace(one + other - 2 * scipy.linalg.sqrtm(one @ other).real))


@pytest.mark.parametrize(("shift", "stretch"), [(0.0, 1.0), (0.5, 1.0), (0.0, 1.5), (2.0, 0.3)])
def test_the_frechet_distance_agrees_with_numpy_and_scipy(features, shift, stretch):
    real, drawn = drawn_from(0, 300), drawn_from(1, 200, shift, stretch)
    numbers, notes = measured(features, real, drawn)
    expected = frechet_distance(real.features.double().numpy(), drawn.features.double().numpy())
    assert numbers["fed"] == pytest.approx(expected, rel=1e-4)
    assert notes == []


def test_the_frechet_distance_of_known_normals(features):
    """Equal covariances cancel: it is the squared distance of the means."""
    real = drawn_from(0, 200)
    numbers, _ = measured(features, real, Seen(real.features + 3.0, real.logits))
    assert numbers["fed"] == pytest.approx(9 * WIDTH, rel=1e-4)


def polynomial_mmd(real: np.ndarray, drawn: np.ndarray) -> float:
    """Binkowski et al. 2018, Section 4: unbiased, kernel (x.y / d + 1)^3."""
    within = []
    for values in (real, drawn):
        kernel = (values @ values.T / WIDTH + 1) ** 3
        within.append((kernel.sum() - np.trace(kernel)) / (len(values) * (len(values) - 1)))
    return float(sum(within) - 2 * ((real @ drawn.T / WIDTH + 1) ** 3).mean())


def test_kid_is_the_mean_over_seeded_subsets_and_its_spread_theirs(features):
    real, drawn = drawn_from(0, 80), drawn_from(1, 90, shift=0.3)
    numbers, _ = measured(features, real, drawn, seed=5)
    seed_global_generators("metric subsets", 5)
    subsets = [[torch.randperm(len(seen.features))[:40] for seen in (real, drawn)] for _ in range(3)]
    expected = [
        polynomial_mmd(real.features[one].double().numpy(), drawn.features[other].double().numpy())
        for one, other in subsets
    ]
    assert numbers["kid_effnet"] == pytest.approx(np.mean(expected), rel=1e-3)
    assert numbers["kid_effnet_spread"] == pytest.approx(np.std(expected), rel=1e-2)


def test_few_pictures_mislead_the_frechet_distance_and_not_kid(features):
    """Sets of the same kind are 0 apart; of 40 pictures the Frechet distance says something else, always."""

    def calm(seed: int, count: int, shift: float = 0.0) -> Seen:
        return Seen(drawn_from(seed, count, shift).features / 10, drawn_from(seed, count).logits)

    few = [measured(features, calm(2 * seed, 40), calm(2 * seed + 1, 40))[0] for seed in range(4)]
    many = measured(features, calm(0, 1000), calm(1, 1000))[0]
    apart = measured(features, calm(0, 40), calm(1, 40, shift=5))[0]
    assert min(each["fed"] for each in few) > 10 * many["fed"]
    assert abs(np.mean([each["kid_effnet"] for each in few])) < 0.02 * apart["kid_effnet"]


def test_the_inception_score_counts_kinds_that_are_told_apart(features):
    """Pictures of five kinds, each named beyond doubt and all equally often: five; of one kind: one."""
    kinds = torch.eye(5).repeat(200, 1) * 20
    surely, alike = (Seen(drawn_from(1, 1000).features, logits) for logits in (kinds, kinds[:1].expand(1000, 5)))
    assert measured(features, drawn_from(0, 20), surely)[0]["is_effnet"] == pytest.approx(5, rel=0.03)
    assert measured(features, drawn_from(0, 20), alike)[0]["is_effnet"] == pytest.approx(1)


def test_seeds_decide_the_subsets_and_nobody_elses_randomness_is_touched(features):
    real, drawn = drawn_from(0, 1010), drawn_from(1, 1010, shift=0.3)
    before = torch.random.get_rng_state()
    first, again, other = (measured(features, real, drawn, seed)[0] for seed in (0, 0, 1))
    assert first == again
    assert first["kid_effnet"] != other["kid_effnet"]
    assert first["fed"] == other["fed"]
    assert torch.random.get_rng_state().equal(before)


@pytest.mark.parametrize(("real", "drawn", "fewest"), [(12, 300, 12), (300, 9, 9)])
def test_with_too_few_pictures_for_a_covariance_kid_is_named_instead_and_why(features, real, drawn, fewest):
    numbers, (note, *_) = measured(features, drawn_from(0, real), drawn_from(1, drawn))
    assert "fed" not in numbers
    assert "kid_effnet" in numbers
    assert f"more than 12 pictures on either side, and there are {fewest}" in note
    assert "no full rank" in note
    assert "Look at kid_effnet instead" in note


def test_one_more_picture_than_features_is_enough(features):
    numbers, notes = measured(features, drawn_from(0, 13), drawn_from(1, 13))
    assert "fed" in numbers
    assert notes == ["No is_effnet: it takes 20 drawn pictures."]


def test_fewer_than_four_pictures_have_no_distance_at_all(features):
    numbers, notes = measured(features, drawn_from(0, 3), drawn_from(1, 30))
    assert set(numbers) == {"is_effnet", "is_effnet_spread"}
    assert notes[1] == "No kid_effnet: it takes 4 pictures of each kind, and there are 3."


def test_all_that_moves_the_numbers_is_told(features):
    distances = Distances(features, seed=7)
    distances.add(drawn_from(0, 30), real=True)
    distances.add(drawn_from(1, 20), real=False)
    told = distances.described()
    assert (told["features"], told["features_digest"], told["features_resize"]) == ("stand-in", "0" * 16, "none")
    assert (told["real_pictures"], told["drawn_pictures"], told["seed"]) == (30, 20, 7)
    assert told["kid"]["subset_size"] == 10
    assert told["kid"]["subsets"] == 3
    assert told["torchmetrics"].count(".") >= 2
