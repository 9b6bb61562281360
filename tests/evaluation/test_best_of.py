from dataclasses import replace
from itertools import combinations, product
from statistics import mean

import pytest
import torch
from PIL import Image

from dalle.evaluation.metrics.best_of import PERFECT, Curve, RerankCurve, best_of, rerank_curve, sizes_up_to
from dalle.evaluation.plots import plot_rerank_curve
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
def measured(dalle) -> RerankCurve:
    return rerank_curve(dalle, CAPTIONS, {"bright": brightness}, CONFIG)


def test_sizes_double_up_to_all_candidates():
    assert sizes_up_to(512) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert sizes_up_to(6) == [1, 2, 4, 6]
    assert sizes_up_to(1) == [1]


@pytest.mark.parametrize("size", range(1, 8))
def test_best_of_is_the_mean_over_all_choices_of_that_many(size):
    generator = torch.Generator().manual_seed(size)
    quality, scores = torch.rand(2, 7, generator=generator)
    favourites = [max(chosen, key=lambda place: scores[place]) for chosen in combinations(range(7), size)]
    expected = mean(quality[place].item() for place in favourites)
    assert best_of(quality[None], scores[None], size).item() == pytest.approx(expected, abs=1e-6)


def test_one_candidate_has_the_mean_quality_and_all_have_the_favourites():
    quality, scores = torch.tensor([[0.0, 1.0, 1.0, 0.0]]), torch.tensor([[4.0, 1.0, 2.0, 3.0]])
    assert best_of(quality, scores, 1).item() == pytest.approx(0.5)
    assert best_of(quality, scores, 4).item() == 0


def test_what_is_chosen_by_does_not_matter_where_it_knows_nothing():
    """Averaged over many random rankings, every number of candidates has the mean quality."""
    generator = torch.Generator().manual_seed(0)
    quality = (torch.rand(4000, 16, generator=generator) < 0.3).float()
    scores = torch.rand(4000, 16, generator=generator)
    for size in sizes_up_to(16):
        assert best_of(quality, scores, size).mean().item() == pytest.approx(quality.mean().item(), abs=0.03)


def test_large_numbers_of_candidates_are_exact():
    quality = torch.zeros(1, 512)
    quality[0, 100] = 1
    # a right one is among 256 of 512 in half of the choices
    assert best_of(quality, quality, 256).item() == pytest.approx(0.5, abs=1e-12)
    assert best_of(torch.ones(1, 512), quality, 37).item() == pytest.approx(1, abs=1e-12)


def test_a_curve_of_one_set_of_candidates_agrees_with_drawing_and_ranking_them(dalle, measured):
    results = dalle.generate_many(CAPTIONS, CONFIG)
    curves = {each.ranking: each for each in measured.curves}
    assert list(curves) == ["clip", "image_likelihood", "mixture", PERFECT]
    assert measured.chosen_by == "mixture"
    levels = [brightness(0, result.images) for result in results]
    everything = torch.cat(levels).mean().item()
    assert all(each.means[0] == pytest.approx(everything, abs=1e-5) for each in curves.values())
    assert curves["mixture"].means[-1] == pytest.approx(mean(each[0].item() for each in levels), abs=1e-5)
    assert curves[PERFECT].means[-1] == pytest.approx(mean(each.max().item() for each in levels), abs=1e-5)
    by_likelihood = [torch.tensor(result.scores_by_name["image_likelihood"]).argmax() for result in results]
    expected = mean(each[place].item() for each, place in zip(levels, by_likelihood, strict=True))
    assert curves["image_likelihood"].means[-1] == pytest.approx(expected, abs=1e-5)


def test_no_choice_is_better_than_a_perfect_one_which_gains_with_every_candidate(measured):
    *others, perfect = measured.curves
    assert perfect.means == sorted(perfect.means)
    assert all(a <= b + 1e-9 for each in others for a, b in zip(each.means, perfect.means, strict=True))


def test_the_batch_size_moves_nothing(dalle, measured):
    again = rerank_curve(dalle, CAPTIONS, {"bright": brightness}, replace(CONFIG, batch_size=18))
    for one, other in zip(measured.curves, again.curves, strict=True):
        assert one.means == pytest.approx(other.means, abs=1e-5)


def test_errors_are_those_of_a_mean_over_captions(dalle):
    def by_number(number: int, images: list[Image.Image]) -> torch.Tensor:
        return torch.full((len(images),), float(number))

    (clip, _) = rerank_curve(dalle, CAPTIONS, {"number": by_number}, SamplingConfig(candidates=2, keep=1)).curves
    assert clip.means == [1, 1]
    assert clip.errors == pytest.approx([torch.tensor([0.0, 1, 2]).std().item() / 3**0.5] * 2)


def test_the_table_has_every_curve_and_the_numbers_are_of_the_choice_asked_for():
    lines = [Curve("judge", "clip", [0.5, 0.625], [0.01, 0.02]), Curve("judge", PERFECT, [0.5, 0.75], [0.01, 0.02])]
    curve = RerankCurve(64, "clip", [1, 2], lines)
    assert curve.numbers("val") == {"judge_val_best_of_1": 0.5, "judge_val_best_of_2": 0.625}
    heading, _, row, _ = curve.table().splitlines()
    assert heading == "| quality | chosen by | 1 | 2 |"
    assert row == "| judge | clip | 0.500 ± 0.010 | 0.625 ± 0.020 |"


def test_the_plot_is_a_picture_with_a_panel_for_each_quality():
    lines = product(("judge", "clip"), ("clip", PERFECT))
    curves = [Curve(quality, ranking, [0.4, 0.6, 0.7], [0.02] * 3) for quality, ranking in lines]
    one, two = (plot_rerank_curve(RerankCurve(64, "clip", [1, 2, 4], shown)) for shown in (curves[:2], curves))
    assert two.width > 1.7 * one.width
    assert len(two.getcolors(1 << 20)) > 50
