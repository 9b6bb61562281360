"""The score of a checkpoint, by which candidates are ranked unless another is set."""

import shutil

import pytest
from PIL import Image

from dalle.sampling.edits.complete import CompleteConfig, complete
from dalle.sampling.edits.outpaint import OutpaintConfig, outpaint
from dalle.sampling.pipeline import DALLE
from dalle.sampling.sampling_config import SamplingConfig

CAPTION, DRAWN = "a red circle", {"candidates": 8, "keep": 8, "seed": 2}


@pytest.fixture
def by_mixture(checkpoint_ranked_by) -> DALLE:
    return DALLE.load(checkpoint_ranked_by("mixture"))


def test_score_of_the_checkpoint_is_the_default_and_another_may_be_set(by_mixture):
    default, mixture, clip = (
        by_mixture.generate(CAPTION, rerank=score, **DRAWN) for score in (None, "mixture", "clip")
    )
    assert (default.candidates, default.scores) == (mixture.candidates, mixture.scores)
    assert list(default.scores_by_name) == ["clip", "image_likelihood", "mixture"]
    assert list(clip.scores_by_name) == ["clip"]
    assert clip.scores != default.scores


@pytest.mark.parametrize("recorded", [None, "clip"])
def test_checkpoint_that_names_no_other_score_ranks_by_clip(checkpoint_ranked_by, recorded):
    dalle = DALLE.load(checkpoint_ranked_by(recorded))
    assert dalle.resolve(SamplingConfig()).rerank == "clip"
    assert list(dalle.generate(CAPTION, **DRAWN).scores_by_name) == ["clip"]


def test_without_clip_a_default_mixture_leaves_candidates_unranked(checkpoint_ranked_by):
    folder = checkpoint_ranked_by("mixture")
    shutil.rmtree(folder / "clip")
    dalle = DALLE.load(folder)
    assert dalle.resolve(SamplingConfig()).rerank is None
    result = dalle.generate(CAPTION, **DRAWN)
    assert (result.scores, result.candidates) == (None, list(range(8)))
    with pytest.raises(ValueError, match="rerank=mixture needs a CLIP"):
        dalle.generate(CAPTION, rerank="mixture", **DRAWN)


def test_without_clip_a_default_likelihood_still_ranks(checkpoint_ranked_by):
    folder = checkpoint_ranked_by("image_likelihood")
    shutil.rmtree(folder / "clip")
    assert list(DALLE.load(folder).generate(CAPTION, **DRAWN).scores_by_name) == ["image_likelihood"]


def test_larger_images_are_ranked_by_clip_unless_another_score_is_set(by_mixture):
    original = by_mixture.encode_image(Image.new("RGB", (8, 8), "orange"))
    wide = outpaint(original, OutpaintConfig(right=2, refinement_passes=0))
    assert list(by_mixture.generate(CAPTION, canvas=wide, **DRAWN).scores_by_name) == ["clip"]
    same_size = complete(original, CompleteConfig(rows=2))
    assert "mixture" in by_mixture.generate(CAPTION, canvas=same_size, **DRAWN).scores_by_name
    with pytest.raises(ValueError, match="rerank=mixture: the transformer scores images of 4 x 4 tokens"):
        by_mixture.generate(CAPTION, canvas=wide, rerank="mixture", **DRAWN)


@pytest.mark.parametrize("name", ["caption_likelihood", "luck"])
def test_unknown_default_score_raises(checkpoint_ranked_by, name):
    with pytest.raises(ValueError, match=f"default rerank={name} is not one of clip, image_likelihood, mixture"):
        DALLE.load(checkpoint_ranked_by(name))
