import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dalle import CLIP, DALLE, DiscreteVAE
from dalle.checkpoint import CheckpointError
from dalle.models.dvae import DVAEConfig

CAPTION = "a small red circle above a large blue square"


@pytest.fixture(scope="module")
def dalle(checkpoints) -> DALLE:
    return DALLE.load(checkpoints)


@pytest.fixture
def copied(checkpoints, tmp_path) -> Path:
    return Path(shutil.copytree(checkpoints, tmp_path / "run"))


def test_a_result_holds_the_best_candidates_in_order(dalle):
    result = dalle.generate(CAPTION, candidates=12, keep=5, seed=3)
    everything = dalle.generate(CAPTION, candidates=12, keep=12, seed=3)
    assert result.tokens.shape == (5, 4, 4)
    assert result.tokens.dtype == torch.int64
    assert len(result.images) == len(result.scores) == len(result.candidates) == 5
    assert result.images[0].size == (8, 8)
    assert result.scores == sorted(everything.scores, reverse=True)[:5]
    assert sorted(everything.candidates) == list(range(12))
    assert result.tokens.equal(everything.tokens[:5])


def test_scores_are_clips_of_these_very_pictures(dalle):
    result = dalle.generate(CAPTION, candidates=6, keep=6)
    assert result.scores == pytest.approx(dalle.clip.score(result.images, [CAPTION])[:, 0].tolist(), abs=1e-5)


def test_pictures_are_what_the_dvae_makes_of_the_tokens(dalle):
    result = dalle.generate(CAPTION, candidates=3, keep=1)
    assert dalle.pictures(result.tokens)[0].tobytes() == result.images[0].tobytes()
    assert torch.frombuffer(bytearray(result.images[0].tobytes()), dtype=torch.uint8).unique().numel() > 8


def test_a_candidate_is_the_same_picture_whatever_else_is_drawn(dalle):
    many = dalle.generate(CAPTION, candidates=9, keep=9, seed=4, batch_size=4)
    place = many.candidates.index(7)
    alone = dalle.generate(CAPTION, candidates=1, keep=1, seed=4, first=7)
    assert alone.candidates == [7]
    assert alone.tokens[0].equal(many.tokens[place])
    assert alone.images[0].tobytes() == many.images[place].tobytes()


def test_captions_together_get_what_they_get_alone(dalle):
    captions = [CAPTION, "three green triangles"]
    together = dalle.generate_many(captions, candidates=5, keep=2, seed=2)
    for caption, result in zip(captions, together, strict=True):
        alone = dalle.generate(caption, candidates=5, keep=2, seed=2)
        assert result.caption == caption
        assert result.tokens.equal(alone.tokens)
        assert result.scores == pytest.approx(alone.scores, abs=1e-6)


def test_settings_reach_the_drawing(dalle):
    greedy = dalle.generate(CAPTION, candidates=4, keep=4, temperature=0)
    assert greedy.tokens.unique(dim=0).shape[0] == 1
    for narrow in ({"top_k": 1}, {"top_p": 0.01}):
        assert dalle.generate(CAPTION, candidates=4, keep=4, **narrow).tokens.equal(greedy.tokens)
    assert dalle.generate(CAPTION, candidates=4, keep=4).tokens.unique(dim=0).shape[0] == 4


def test_without_clip_the_first_candidates_are_kept_unscored(copied):
    shutil.rmtree(copied / "clip")
    result = DALLE.load(copied).generate(CAPTION, candidates=5, keep=2)
    assert result.scores is None
    assert result.candidates == [0, 1]


def test_a_transformers_folder_alone_finds_its_dvae(checkpoints, dalle):
    alone = DALLE.load(checkpoints / "transformer")
    assert alone.clip is None
    drawn = dalle.generate(CAPTION, candidates=2, keep=2)
    expected = drawn.tokens[torch.tensor(drawn.candidates).argsort()]
    assert alone.generate(CAPTION, candidates=2, keep=2).tokens.equal(expected)


def test_parts_can_lie_elsewhere(copied):
    (copied / "dvae").rename(copied / "moved")
    (copied / "clip").rename(copied / "scorer")
    with pytest.raises(CheckpointError, match=r"which is not at .*dvae.*dvae=<folder>"):
        DALLE.load(copied)
    loaded = DALLE.load(copied, dvae=copied / "moved", clip=copied / "scorer")
    assert loaded.generate(CAPTION, candidates=1, keep=1).scores is not None


def test_another_dvae_is_refused_with_both_digests(copied):
    torch.manual_seed(1)
    DiscreteVAE(DVAEConfig(vocabulary=13, width=8, groups=2, blocks_per_group=1)).save(copied / "other")
    with pytest.raises(CheckpointError, match=r"tokens of dVAE [0-9a-f]{16}, but .*other is [0-9a-f]{16}"):
        DALLE.load(copied, dvae=copied / "other")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        DALLE.load(tmp_path / "nowhere")


def test_a_missing_tokenizer_is_named(copied):
    (copied / "transformer" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        DALLE.load(copied)


def test_parts_that_do_not_fit_are_refused(checkpoints, dalle):
    dvae = DiscreteVAE(DVAEConfig(vocabulary=7, width=8, groups=2, blocks_per_group=1))
    with pytest.raises(ValueError, match="7 codes and the transformer draws 13"):
        DALLE(dvae, dalle.transformer, dalle.tokenizer, CLIP.load(checkpoints / "clip"))


@pytest.mark.parametrize("caption", ["", "  \n "])
def test_an_empty_caption_is_refused(dalle, caption):
    with pytest.raises(ValueError, match="empty"):
        dalle.generate(caption)


def test_a_caption_too_long_is_refused_with_the_numbers(dalle):
    with pytest.raises(ValueError, match=r"a small red.*: the caption is \d+ tokens long and 31 fit"):
        dalle.generate(CAPTION * 9)


@pytest.mark.parametrize("keep", [0, 5])
def test_keeping_more_or_fewer_than_there_are_is_refused(dalle, keep):
    with pytest.raises(ValueError, match=f"keep={keep} of candidates=4"):
        dalle.generate(CAPTION, candidates=4, keep=keep)


def test_importing_the_package_does_not_load_torch():
    code = "import sys, dalle; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
