from dataclasses import replace

import pytest
import torch
from PIL import Image

from dalle.sampling import likelihood, rerank
from dalle.sampling.decode import sample_all_tokens
from dalle.sampling.guidance import empty_caption
from dalle.sampling.likelihood import image_log_likelihood, pointwise_mutual_information
from dalle.sampling.pipeline import DALLE
from dalle.sampling.progress_bar import SamplingStopped
from dalle.sampling.rerank import (
    MAX_REFERENCES,
    CaptionCandidates,
    CLIPSimilarity,
    ImageLogLikelihood,
    PointwiseMutualInformation,
    Reranker,
    build_reranker,
    reference_captions,
    standardise,
)
from dalle.sampling.sampling_config import RerankConfig, RerankWeights, SamplingConfig
from dalle.sampling.sampling_defaults import SamplingDefaults


class Brightness:
    """Score the brightness of an image, whatever the caption."""

    def score(self, images: list[Image.Image], captions: list[str]) -> torch.Tensor:
        scores = torch.tensor([image.convert("L").getpixel((0, 0)) for image in images])
        return scores[:, None].repeat(1, len(captions))


def grey(*levels: int) -> CaptionCandidates:
    """Return uniform grey images."""
    images = [Image.new("RGB", (2, 2), (level,) * 3) for level in levels]
    return CaptionCandidates(
        "anything", torch.zeros(6, dtype=torch.int64), torch.zeros(len(levels), 4, 4).long(), images
    )


def given(*scores: float):
    """Return a scorer with fixed scores."""
    return lambda candidates, on_chunk: torch.tensor(scores)


BY_BRIGHTNESS = Reranker({"clip": CLIPSimilarity(Brightness())}, {"clip": 1.0})


@pytest.fixture
def model(make_transformer):
    return make_transformer()


@pytest.fixture
def drawn(model) -> CaptionCandidates:
    ids = model.sequence.pad_captions([[1, 2, 3]])
    return CaptionCandidates("anything", ids[0], sample_all_tokens(model, ids, 5)[0], [])


def test_best_candidate_comes_first_with_its_score():
    ranking = BY_BRIGHTNESS(grey(10, 200, 90))
    assert ranking == ([1, 2, 0], [200, 90, 10], {"clip": [200, 90, 10]})
    assert ranking.best(2) == ([1, 2], [200, 90], {"clip": [200, 90]})


def test_equal_scores_keep_their_order():
    assert BY_BRIGHTNESS(grey(7, 9, 7, 9, 7)).order == [1, 3, 0, 2, 4]


def test_combined_score_is_a_weighted_sum_of_standardised_scores():
    score_functions = {"clip": given(0.1, 0.2, 0.3), "image_likelihood": given(-100.0, -400.0, -400.0)}
    clip, image = torch.tensor([-1.0, 0, 1]) * 1.5**0.5, torch.tensor([2.0, -1, -1]) / 2**0.5
    even = Reranker(score_functions, {"clip": 1.0, "image_likelihood": 1.0})(grey(0, 0, 0))
    assert even.order == [2, 0, 1]
    assert even.scores == pytest.approx((clip + image)[[2, 0, 1]].tolist(), abs=1e-5)
    mostly_image = Reranker(score_functions, {"clip": 1.0, "image_likelihood": 2.0})(grey(0, 0, 0))
    assert mostly_image.order == [0, 2, 1]


def test_combination_reports_each_score_in_order():
    score_functions = {"clip": given(0.1, 0.2), "image_likelihood": given(-1.0, -5.0)}
    ranking = Reranker(score_functions, {"clip": 1.0, "image_likelihood": 3.0})(grey(0, 0))
    assert list(ranking.scores_by_name) == ["clip", "image_likelihood", "mixture"]
    assert ranking.scores_by_name["image_likelihood"] == [-1, -5]
    assert ranking.scores_by_name["clip"] == pytest.approx([0.1, 0.2])
    assert ranking.scores_by_name["mixture"] == ranking.scores


def test_combination_does_not_depend_on_units():
    nats = torch.tensor([-80.0, -95.0, -81.0, -120.0])
    orders = []
    for in_unit in (nats, nats / 0.693, nats * 1000 + 5):
        score_functions = {"clip": given(0.2, 0.5, 0.3, 0.6), "image_likelihood": lambda *_, scores=in_unit: scores}
        orders.append(Reranker(score_functions, {"clip": 1.0, "image_likelihood": 0.8})(grey(0, 0, 0, 0)).order)
    assert orders[0] == orders[1] == orders[2]


def test_the_weight_of_a_single_score_counts():
    worst_first = Reranker({"clip": given(0.1, 0.4, 0.2)}, {"clip": -1.0})(grey(0, 0, 0))
    assert worst_first.order == [0, 2, 1]
    assert list(worst_first.scores_by_name) == ["clip", "mixture"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(value):
    """NaN would rank first, and standardised scores of one infinite score are all NaN."""
    score_functions = {"clip": given(0.1, value, 0.2), "image_likelihood": given(-3.0, -4.0, -5.0)}
    for weights in ({"clip": 1.0}, {"image_likelihood": 1.0, "clip": 0.5}):
        with pytest.raises(
            ValueError, match="the model of rerank=clip computes scores that are NaN or infinite: its weights"
        ):
            Reranker({name: score_functions[name] for name in weights}, weights)(grey(1, 2, 3))


def test_constant_scores_have_no_weight():
    assert standardise(torch.full((3,), 7.25)).tolist() == [0, 0, 0]
    assert standardise(torch.tensor([4.0])).tolist() == [0]
    score_functions = {"clip": given(0.1, 0.4, 0.2), "image_likelihood": given(-3.0, -3.0, -3.0)}
    assert Reranker(score_functions, {"clip": 1.0, "image_likelihood": 9.0})(grey(0, 0, 0)).order == [1, 2, 0]


def test_transformer_likelihood_scores(model, drawn):
    assert ImageLogLikelihood(model)(drawn).equal(image_log_likelihood(model, drawn.ids, drawn.tokens))
    others = model.sequence.pad_captions([[4], [5, 6]])
    expected = pointwise_mutual_information(model, drawn.ids, drawn.tokens, others)
    assert PointwiseMutualInformation(model, others)(drawn).equal(expected)


def test_caption_is_compared_with_other_captions_only(model, drawn):
    others = model.sequence.pad_captions([[4], [5, 6]])
    with_itself = torch.cat([others[:1], drawn.ids[None], others[1:]])
    assert PointwiseMutualInformation(model, with_itself)(drawn).equal(PointwiseMutualInformation(model, others)(drawn))


def test_references_beyond_the_limit_are_ignored(model, drawn):
    many = model.sequence.pad_captions([[number % 11, number // 11] for number in range(2, MAX_REFERENCES + 9)])
    few = many[:MAX_REFERENCES]
    assert PointwiseMutualInformation(model, many)(drawn).equal(PointwiseMutualInformation(model, few)(drawn))


def test_ranking_can_be_stopped_after_each_batch_of_images(model, drawn, monkeypatch):
    monkeypatch.setattr(rerank, "CLIP_BATCH_SIZE", 2)
    monkeypatch.setattr(likelihood, "MAX_BATCH_SIZE", 2)
    candidates = replace(drawn, images=grey(1, 5, 3, 4, 2).images)
    score_functions = {
        "clip": CLIPSimilarity(Brightness()),
        "image_likelihood": ImageLogLikelihood(model),
        "caption_likelihood": PointwiseMutualInformation(model, model.sequence.pad_captions([[4], [5, 6]])),
    }
    reranker = Reranker(score_functions, dict.fromkeys(score_functions, 1.0))
    batches = []
    whole = reranker(candidates, lambda: batches.append(1))
    assert len(batches) == 3 + 3 + 3 * 3  # of 2, 2 and 1 images; the last score is that of three captions
    assert whole == reranker(candidates)
    assert whole.scores_by_name["clip"] == [[1, 5, 3, 4, 2][index] for index in whole.order]

    remaining = iter(range(7))

    def stop():
        if next(remaining, None) is None:
            raise SamplingStopped

    with pytest.raises(SamplingStopped):
        reranker(candidates, stop)
    assert len(batches) == 15


def test_default_references_are_the_empty_caption_or_other_captions(model):
    captions, others = model.sequence.pad_captions([[1], [2], [1]]), model.sequence.pad_captions([[7], [8]])
    assert reference_captions(model.sequence, captions, others, trained_on_empty=True).equal(others)
    assert reference_captions(model.sequence, captions, None, trained_on_empty=True).equal(
        empty_caption(model.sequence)
    )
    assert reference_captions(model.sequence, captions, None, trained_on_empty=False).equal(captions[:2])


@pytest.mark.parametrize("reference", [None, [3]])
def test_missing_references_raise(model, reference):
    captions = model.sequence.pad_captions([[3]])
    references = None if reference is None else model.sequence.pad_captions([reference])
    with pytest.raises(ValueError, match="there are none; give some.*rerank_references="):
        reference_captions(model.sequence, captions, references, trained_on_empty=False)


def test_scorers_and_weights_are_parsed_by_name(model):
    assert RerankConfig().score_weights == {"clip": 1}
    assert RerankConfig(rerank="image_likelihood").score_weights == {"image_likelihood": 1}
    assert RerankConfig(rerank="mixture").score_weights == {"clip": 1, "image_likelihood": 0.5}
    weights = RerankWeights(clip=0, image_likelihood=2, caption_likelihood=-1)
    mixed = RerankConfig(rerank="mixture", rerank_weights=weights)
    reranker = build_reranker(mixed, model, None, model.sequence.pad_captions([[4]]))
    assert reranker.weights == {"image_likelihood": 2, "caption_likelihood": -1}
    assert list(reranker.score_functions) == list(reranker.weights)


def test_no_score_set_is_that_of_clip():
    assert RerankConfig().rerank is None
    assert RerankConfig().score_weights == RerankConfig(rerank="clip").score_weights


def test_no_reranking_without_clip_by_default(model):
    assert build_reranker(RerankConfig(), model, None, None) is None
    assert build_reranker(RerankConfig(rerank="image_likelihood"), model, None, None) is not None


def test_a_mixture_with_clip_is_refused_without_one(checkpoints):
    dalle, mixture = DALLE.load(checkpoints / "transformer"), SamplingConfig(rerank="mixture")
    with pytest.raises(ValueError, match="needs a CLIP for rerank_weights.clip, and there is none; give clip=<folder>"):
        dalle.resolve(mixture)
    likelihood = replace(mixture, rerank_weights=RerankWeights(clip=0))
    assert dalle.resolve(likelihood).ranked
    assert not dalle.resolve(SamplingConfig()).ranked


def test_clip_is_refused_without_one_only_if_it_was_asked_for(checkpoints):
    dalle = DALLE.load(checkpoints / "transformer")
    with pytest.raises(ValueError, match="rerank=clip needs a CLIP, and there is none; give clip=<folder>"):
        dalle.generate("a red circle", rerank="clip", candidates=2, keep=1)
    resolved = dalle.resolve(SamplingConfig(candidates=2, keep=1))
    assert dalle.resolve(resolved) == resolved
    assert dalle.generate("a red circle", resolved).scores is None


def test_likelihood_reranking_keeps_the_likeliest_images(checkpoints):
    dalle = DALLE.load(checkpoints)
    everything = dalle.generate("a red circle", candidates=9, keep=9, seed=2)
    kept = dalle.generate("a red circle", candidates=9, keep=3, seed=2, rerank="image_likelihood")
    likelihoods = image_log_likelihood(dalle.transformer, dalle.tokenize(["a red circle"])[0], everything.tokens)
    best = likelihoods.argsort(descending=True)[:3].tolist()
    assert kept.candidates == [everything.candidates[place] for place in best]
    assert kept.scores == pytest.approx(likelihoods[best].tolist(), abs=1e-4)
    assert kept.scores_by_name == {"image_likelihood": kept.scores}


def test_combination_ranks_each_caption_by_itself(checkpoints):
    dalle, captions = DALLE.load(checkpoints), ["a red circle", "three green triangles"]
    for result in dalle.generate_many(captions, SamplingConfig(candidates=6, keep=6, rerank="mixture")):
        clip, image = (torch.tensor(result.scores_by_name[name]) for name in ("clip", "image_likelihood"))
        assert result.scores == pytest.approx((standardise(clip) + 0.5 * standardise(image)).tolist(), abs=1e-4)
        assert result.scores == sorted(result.scores, reverse=True)


def test_caption_likelihood_references_are_other_or_given_captions(checkpoints):
    dalle, captions = DALLE.load(checkpoints), ["a red circle", "three green triangles"]
    settings = {"candidates": 4, "keep": 4, "rerank": "caption_likelihood"}
    beside = dalle.generate_many(captions, **settings)[0]
    given = dalle.generate(captions[0], rerank_references=captions[1:], **settings)
    assert given.candidates == beside.candidates
    assert given.scores == pytest.approx(beside.scores, abs=1e-4)
    with pytest.raises(ValueError, match="compares a caption with others"):
        dalle.generate(captions[0], **settings)


def test_model_with_empty_caption_needs_no_references(checkpoints):
    plain = DALLE.load(checkpoints)
    dalle = DALLE(plain.dvae, plain.transformer, plain.tokenizer, defaults=SamplingDefaults(caption_dropout=0.1))
    result = dalle.generate("a red circle", candidates=4, keep=4, rerank="caption_likelihood")
    ids = dalle.tokenize(["a red circle"])[0]
    gains = pointwise_mutual_information(
        dalle.transformer, ids, result.tokens, empty_caption(dalle.transformer.sequence)
    )
    assert result.scores == pytest.approx(gains.tolist(), abs=1e-4)
