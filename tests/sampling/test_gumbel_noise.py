import math

import pytest
import torch

from dalle.sampling.gumbel_noise import candidate_noise_keys, gumbel_noise


def test_noise_of_a_candidate_does_not_depend_on_the_batch():
    everyone = gumbel_noise(candidate_noise_keys(3, torch.arange(10)), 5, 40)
    some = gumbel_noise(candidate_noise_keys(3, torch.tensor([7, 2])), 5, 40)
    assert some.equal(everyone[[7, 2]])


def test_noise_of_a_token_does_not_depend_on_vocabulary_size():
    keys = candidate_noise_keys(0, torch.arange(3))
    assert gumbel_noise(keys, 0, 10).equal(gumbel_noise(keys, 0, 20)[:, :10])


def splitmix64(state: int, number: int) -> int:
    """Reference: the published algorithm in Python integers."""
    z = (state + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63, 10**30])
def test_noise_is_splitmix64_of_its_coordinates_for_any_integer_seed(seed: int):
    def expected(candidate: int, position: int, token: int) -> float:
        bits = splitmix64(seed % 2**64, 0)
        for number in (candidate, position, token):
            bits = splitmix64(bits, number)
        return -math.log(-math.log1p(-((bits >> 24) + 0.5) / 2**40))

    noise = gumbel_noise(candidate_noise_keys(seed, torch.arange(3)), 4, 5)
    literal = [[expected(candidate, 4, token) for token in range(5)] for candidate in range(3)]
    assert noise.equal(torch.tensor(literal))


@pytest.mark.parametrize("axis", ["seed", "candidate", "position", "token"])
def test_every_coordinate_changes_the_noise(axis: str):
    def drawn(coordinate: int) -> torch.Tensor:
        at = {"seed": 0, "candidate": 0, "position": 0, axis: coordinate}
        noise = gumbel_noise(candidate_noise_keys(at["seed"], torch.tensor([at["candidate"]])), at["position"], 4096)
        return noise[0].roll(-coordinate) if axis == "token" else noise[0]

    many = torch.stack([drawn(coordinate) for coordinate in range(16)])
    correlations = torch.corrcoef(many) - torch.eye(16)
    assert correlations.abs().max() < 5 / math.sqrt(4096)


def test_noise_is_standard_gumbel():
    noise = gumbel_noise(candidate_noise_keys(1, torch.arange(200)), 3, 2000).double()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.02)
    for probability in (0.001, 0.1, 0.5, 0.9, 0.999):
        quantile = -math.log(-math.log(probability))
        assert (noise < quantile).double().mean().item() == pytest.approx(probability, abs=0.002)


def test_gumbel_max_samples_follow_their_probabilities():
    probabilities = torch.tensor([0.5, 0.25, 0.2, 0.04, 0.01, 0.0])
    noise = gumbel_noise(candidate_noise_keys(2, torch.arange(50_000)), 0, 6)
    drawn = (probabilities.log() + noise).argmax(dim=-1)
    frequencies = drawn.bincount(minlength=6) / len(drawn)
    torch.testing.assert_close(frequencies, probabilities, atol=0.008, rtol=0)
    assert frequencies[-1] == 0
