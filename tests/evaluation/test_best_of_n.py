"""Best-of-n curves: the estimator against enumeration, curves of sampled candidates, the table and the plot."""

from dataclasses import replace
from itertools import combinations, product
from statistics import mean

import pytest
import torch
from PIL import Image

from dalle.evaluation.metrics.best_of_n import (
    PERFECT,
    BestOfNCurve,
    BestOfNCurves,
    best_of_n,
    best_of_n_curves,
    powers_of_two,
)
from dalle.evaluation.plots import plot_best_of_n
from dalle.sampling.pipeline import DALLE
from dalle.sampling.sampling_config import SamplingConfig

CAPTIONS = ["a red circle", "three green triangles", "one circle left of a square"]


CONFIG = SamplingConfig(candidates=6, keep=6, rerank="mixture", seed=4)


def brightness(number: int, images: list[Image.Image]) -> torch.Tensor:
    return torch.tensor([image.convert("L").resize((1, 1)).getpixel((0, 0)) / 255 for image in images])


@pytest.fixture(scope="module")
def dalle(checkpoints) -> DALLE:
    return DALLE.load(checkpoints)


@pytest.fixture(scope="module")
def computed(dalle) -> BestOfNCurves:
    return best_of_n_curves(dalle, CAPTIONS, {"bright": brightness}, CONFIG)


def test_powers_of_two_end_with_the_count():
    assert powers_of_two(512) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert powers_of_two(6) == [1, 2, 4, 6]
    assert powers_of_two(1) == [1]


@pytest.mark.parametrize("size", range(1, 8))
def test_best_of_n_is_the_mean_over_all_subsets_of_that_size(size):
    generator = torch.Generator().manual_seed(size)
    quality, scores = torch.rand(2, 7, generator=generator)
    best_indices = [max(subset, key=lambda index: scores[index]) for subset in combinations(range(7), size)]
    expected = mean(quality[index].item() for index in best_indices)
    assert best_of_n(quality[None], scores[None], size).item() == pytest.approx(expected, abs=1e-6)


def test_best_of_1_is_the_mean_and_best_of_all_is_the_top_candidate():
    quality, scores = torch.tensor([[0.0, 1.0, 1.0, 0.0]]), torch.tensor([[4.0, 1.0, 2.0, 3.0]])
    assert best_of_n(quality, scores, 1).item() == pytest.approx(0.5)
    assert best_of_n(quality, scores, 4).item() == 0


def test_random_ranking_has_the_mean_quality():
    generator = torch.Generator().manual_seed(0)
    quality = (torch.rand(4000, 16, generator=generator) < 0.3).float()
    scores = torch.rand(4000, 16, generator=generator)
    for size in powers_of_two(16):
        assert best_of_n(quality, scores, size).mean().item() == pytest.approx(quality.mean().item(), abs=0.03)


def test_best_of_n_is_exact_for_512_candidates():
    quality = torch.zeros(1, 512)
    quality[0, 100] = 1
    # the one good candidate is in half of the subsets of 256
    assert best_of_n(quality, quality, 256).item() == pytest.approx(0.5, abs=1e-12)
    assert best_of_n(torch.ones(1, 512), quality, 37).item() == pytest.approx(1, abs=1e-12)


def test_curves_agree_with_generate_many(dalle, computed):
    offsets = [number * CONFIG.candidates for number in range(len(CAPTIONS))]  # each caption has noise of its own
    results = dalle.generate_many(CAPTIONS, CONFIG, candidate_offset=offsets)
    curves = {curve.ranking: curve for curve in computed.curves}
    assert list(curves) == ["clip", "image_likelihood", "mixture", PERFECT]
    assert computed.reranker == "mixture"
    brightnesses = [brightness(0, result.images) for result in results]
    overall_mean = torch.cat(brightnesses).mean().item()
    assert all(curve.means[0] == pytest.approx(overall_mean, abs=1e-5) for curve in curves.values())
    assert curves["mixture"].means[-1] == pytest.approx(mean(row[0].item() for row in brightnesses), abs=1e-5)
    assert curves[PERFECT].means[-1] == pytest.approx(mean(row.max().item() for row in brightnesses), abs=1e-5)
    by_likelihood = [torch.tensor(result.scores_by_name["image_likelihood"]).argmax() for result in results]
    expected = mean(row[index].item() for row, index in zip(brightnesses, by_likelihood, strict=True))
    assert curves["image_likelihood"].means[-1] == pytest.approx(expected, abs=1e-5)


def test_perfect_ranking_is_an_upper_bound_and_increases(computed):
    *others, perfect = computed.curves
    assert perfect.means == sorted(perfect.means)
    assert all(a <= b + 1e-9 for curve in others for a, b in zip(curve.means, perfect.means, strict=True))


def test_curves_do_not_depend_on_the_batch_size(dalle, computed):
    again = best_of_n_curves(dalle, CAPTIONS, {"bright": brightness}, replace(CONFIG, batch_size=18))
    for one, other in zip(computed.curves, again.curves, strict=True):
        assert one.means == pytest.approx(other.means, abs=1e-5)


def test_errors_are_standard_errors_over_captions(dalle):
    def by_number(number: int, images: list[Image.Image]) -> torch.Tensor:
        return torch.full((len(images),), float(number))

    (clip, _) = best_of_n_curves(dalle, CAPTIONS, {"number": by_number}, SamplingConfig(candidates=2, keep=1)).curves
    assert clip.means == [1, 1]
    assert clip.errors == pytest.approx([torch.tensor([0.0, 1, 2]).std().item() / 3**0.5] * 2)


def test_table_has_every_curve_and_numbers_are_of_the_reranker():
    by_clip = BestOfNCurve("judge", "clip", [0.5, 0.625], [0.01, 0.02])
    by_quality = BestOfNCurve("judge", PERFECT, [0.5, 0.75], [0.01, 0.02])
    curves = BestOfNCurves(64, "clip", [1, 2], [by_clip, by_quality])
    assert curves.numbers("val") == {"judge_val_best_of_1": 0.5, "judge_val_best_of_2": 0.625}
    heading, _, row, _ = curves.table().splitlines()
    assert heading == "| quality | ranked by | 1 | 2 |"
    assert row == "| judge | clip | 0.500 ± 0.010 | 0.625 ± 0.020 |"


def test_plot_has_a_panel_for_each_quality():
    lines = product(("judge", "clip"), ("clip", PERFECT))
    curves = [BestOfNCurve(quality, ranking, [0.4, 0.6, 0.7], [0.02] * 3) for quality, ranking in lines]
    one, two = (plot_best_of_n(BestOfNCurves(64, "clip", [1, 2, 4], shown)) for shown in (curves[:2], curves))
    assert two.width > 1.7 * one.width
    assert len(two.getcolors(1 << 20)) > 50
