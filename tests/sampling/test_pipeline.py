import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dalle import CLIP, DALLE, DiscreteVAE
from dalle.checkpoint import CheckpointError
from dalle.models.dvae.model import DVAEConfig
from dalle.sampling.canvas import Canvas
from dalle.sampling.decode import MASKED
from dalle.sampling.memory import decoding_memory
from dalle.sampling.sampling_config import SamplingConfig
from dalle.sampling.sampling_defaults import SamplingDefaults

CAPTION = "a small red circle above a large blue square"


@pytest.fixture(scope="module")
def dalle(checkpoints) -> DALLE:
    return DALLE.load(checkpoints)


@pytest.fixture
def copied(checkpoints, tmp_path) -> Path:
    return Path(shutil.copytree(checkpoints, tmp_path / "run"))


def test_result_has_best_candidates_in_order(dalle):
    result = dalle.generate(CAPTION, candidates=12, keep=5, seed=3)
    everything = dalle.generate(CAPTION, candidates=12, keep=12, seed=3)
    assert result.tokens.shape == (5, 4, 4)
    assert result.tokens.dtype == torch.int64
    assert len(result.images) == len(result.scores) == len(result.candidates) == 5
    assert result.images[0].size == (8, 8)
    assert result.scores == sorted(everything.scores, reverse=True)[:5]
    assert sorted(everything.candidates) == list(range(12))
    assert result.tokens.equal(everything.tokens[:5])


def test_scores_are_clip_scores_of_the_images(dalle):
    result = dalle.generate(CAPTION, candidates=6, keep=6)
    assert result.scores == pytest.approx(dalle.clip.score(result.images, [CAPTION])[:, 0].tolist(), abs=1e-5)


def test_images_are_decoded_from_the_tokens(dalle):
    result = dalle.generate(CAPTION, candidates=3, keep=1)
    assert dalle.decode_images(result.tokens)[0].tobytes() == result.images[0].tobytes()
    assert torch.frombuffer(bytearray(result.images[0].tobytes()), dtype=torch.uint8).unique().numel() > 8


def test_candidate_does_not_depend_on_other_samples(dalle):
    many = dalle.generate(CAPTION, candidates=9, keep=9, seed=4, batch_size=4)
    place = many.candidates.index(7)
    alone = dalle.generate(CAPTION, candidates=1, keep=1, seed=4, candidate_offset=7)
    assert alone.candidates == [7]
    assert alone.tokens[0].equal(many.tokens[place])
    assert alone.images[0].tobytes() == many.images[place].tobytes()


def test_no_captions_have_no_results(dalle):
    assert dalle.generate_many([]) == []


def test_captions_together_match_captions_alone(dalle):
    captions = [CAPTION, "three green triangles"]
    together = dalle.generate_many(captions, candidates=5, keep=2, seed=2)
    for caption, result in zip(captions, together, strict=True):
        alone = dalle.generate(caption, candidates=5, keep=2, seed=2)
        assert result.caption == caption
        assert result.tokens.equal(alone.tokens)
        assert result.scores == pytest.approx(alone.scores, abs=1e-6)


def test_settings_reach_the_sampler(dalle):
    greedy = dalle.generate(CAPTION, candidates=4, keep=4, temperature=0)
    assert greedy.tokens.unique(dim=0).shape[0] == 1
    for narrow in ({"top_k": 1}, {"top_p": 0.01}, {"min_p": 1.0}):
        assert dalle.generate(CAPTION, candidates=4, keep=4, **narrow).tokens.equal(greedy.tokens)
    assert dalle.generate(CAPTION, candidates=4, keep=4).tokens.unique(dim=0).shape[0] == 4


def test_without_clip_first_candidates_are_kept_without_scores(copied):
    shutil.rmtree(copied / "clip")
    result = DALLE.load(copied).generate(CAPTION, candidates=5, keep=2)
    assert result.scores is None
    assert result.candidates == [0, 1]


def test_transformer_folder_alone_finds_its_dvae(checkpoints, dalle):
    alone = DALLE.load(checkpoints / "transformer")
    assert alone.clip is None
    drawn = dalle.generate(CAPTION, candidates=2, keep=2)
    expected = drawn.tokens[torch.tensor(drawn.candidates).argsort()]
    assert alone.generate(CAPTION, candidates=2, keep=2).tokens.equal(expected)


def test_models_can_be_in_other_folders(copied):
    (copied / "dvae").rename(copied / "moved")
    (copied / "clip").rename(copied / "scorer")
    with pytest.raises(CheckpointError, match=r"which is not at .*dvae.*dvae=<folder>"):
        DALLE.load(copied)
    loaded = DALLE.load(copied, dvae=copied / "moved", clip=copied / "scorer")
    assert loaded.generate(CAPTION, candidates=1, keep=1).scores is not None


def test_other_dvae_raises_with_both_digests(copied):
    torch.manual_seed(1)
    DiscreteVAE(DVAEConfig(vocabulary=13, width=8, groups=2, blocks_per_group=1)).save(copied / "other")
    with pytest.raises(CheckpointError, match=r"tokens of dVAE [0-9a-f]{16}, but .*other is [0-9a-f]{16}"):
        DALLE.load(copied, dvae=copied / "other")


def test_missing_checkpoint_raises(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        DALLE.load(tmp_path / "nowhere")


def test_missing_tokenizer_raises(copied):
    (copied / "transformer" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        DALLE.load(copied)


def test_models_of_different_sizes_raise(checkpoints, dalle):
    dvae = DiscreteVAE(DVAEConfig(vocabulary=7, width=8, groups=2, blocks_per_group=1))
    with pytest.raises(ValueError, match="7 codes and the transformer has 13 image tokens"):
        DALLE(dvae, dalle.transformer, dalle.tokenizer, CLIP.load(checkpoints / "clip"))


@pytest.mark.parametrize("caption", ["", "  \n "])
def test_empty_caption_raises(dalle, caption):
    with pytest.raises(ValueError, match="empty"):
        dalle.generate(caption)


def test_too_long_caption_raises(dalle):
    with pytest.raises(ValueError, match=r"a small red.*: the caption is \d+ tokens long and 31 fit"):
        dalle.generate(CAPTION * 9)


@pytest.mark.parametrize("keep", [0, 5])
def test_invalid_number_of_images_to_keep_raises(dalle, keep):
    with pytest.raises(ValueError, match=f"keep={keep} of candidates=4"):
        dalle.generate(CAPTION, candidates=4, keep=keep)


@pytest.mark.parametrize(("candidates", "kept"), [(3, 3), (9, 8)])
def test_eight_images_are_kept_by_default_or_all_if_there_are_fewer(dalle, candidates, kept):
    result = dalle.generate(CAPTION, candidates=candidates)
    assert (len(result.images), result.num_sampled) == (kept, candidates)


def test_import_does_not_load_torch():
    code = "import sys, dalle; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- many captions, and being stopped --------------------------------------------------------------------------


def test_stream_yields_each_caption_before_sampling_the_next(dalle):
    told = []
    captions = [CAPTION, "three green triangles", "one circle"]
    stream = dalle.stream(
        captions, SamplingConfig(candidates=6, keep=2, batch_size=4), stop=lambda: told.append(1) or False
    )
    first = next(stream)
    assert len(told) == 2 * 16  # two batches of 16 tokens
    expected = dalle.generate_many(captions, candidates=6, keep=2)
    assert first.tokens.equal(expected[0].tokens)
    assert [result.caption for result in stream] == captions[1:]


def stopping_after(cells: int):
    """Return a callback that requests a stop after that many cells."""
    calls = iter(range(cells))
    return lambda: next(calls, None) is None


def test_stop_request_keeps_finished_candidates(dalle):
    captions, config = [CAPTION, "three green triangles"], SamplingConfig(candidates=9, keep=9, seed=4, batch_size=4)
    everything = dalle.generate_many(captions, config)
    stopped = list(dalle.stream(captions, config, stop=stopping_after(4 * 16 + 3)))
    assert [result.num_sampled for result in stopped] == [9, 4]
    assert stopped[0].tokens.equal(everything[0].tokens)
    assert sorted(stopped[1].candidates) == [0, 1, 2, 3]
    rest = dalle.generate("three green triangles", candidates=5, keep=5, seed=4, candidate_offset=4)
    both = dict(zip(stopped[1].candidates + rest.candidates, stopped[1].scores + rest.scores, strict=True))
    whole = dict(zip(everything[1].candidates, everything[1].scores, strict=True))
    assert both == pytest.approx(whole, abs=1e-6)


def test_stream_samples_with_what_was_chosen_before(dalle, monkeypatch):
    config = dalle.resolve(SamplingConfig(candidates=6, keep=6, seed=2, decoding="auto"))
    chosen = dalle.choose_decoding(1, config)
    assert chosen.config == chosen.choice.apply(config)
    (expected,) = dalle.stream([CAPTION], config)
    for step in ("resolve", "choose_decoding"):
        monkeypatch.setattr(dalle, step, lambda *_: pytest.fail("chosen twice"))
    (result,) = dalle.stream([CAPTION], chosen)
    assert result.tokens.equal(expected.tokens) and result.scores == expected.scores


def test_stop_request_before_the_first_result_gives_nothing(dalle):
    assert list(dalle.stream([CAPTION], SamplingConfig(candidates=4, keep=1), stop=lambda: True)) == []


def test_first_candidate_can_differ_between_captions(dalle):
    captions = [CAPTION, CAPTION]
    one, two = dalle.generate_many(captions, candidates=3, keep=3, candidate_offset=[0, 3])
    assert sorted(one.candidates + two.candidates) == list(range(6))
    assert two.tokens.equal(dalle.generate(CAPTION, candidates=3, keep=3, candidate_offset=3).tokens)


# --- guidance --------------------------------------------------------------------------------------------------


def test_guidance_without_caption_dropout_raises(dalle):
    with pytest.raises(ValueError, match=r"guidance=3.0 needs .* train one with stage.caption_dropout=0.1"):
        dalle.generate(CAPTION, candidates=2, keep=1, guidance=3.0)


def test_guidance_changes_images(copied):
    path = copied / "transformer" / "config.json"
    written = json.loads(path.read_text())
    written["meta"]["caption_dropout"] = 0.1
    path.write_text(json.dumps(written))
    dalle = DALLE.load(copied)
    plain, guided = (dalle.generate(CAPTION, candidates=3, keep=3, guidance=scale) for scale in (1.0, 3.0))
    assert not plain.tokens.equal(guided.tokens)
    assert guided.tokens.equal(dalle.generate(CAPTION, candidates=3, keep=3, guidance=3.0, batch_size=1).tokens)


def test_zero_candidates_raise(dalle):
    with pytest.raises(ValueError, match="candidates=-4 samples no image; use at least 1"):
        dalle.generate(CAPTION, candidates=-4, keep=8)


def test_guidance_defaults_to_that_of_the_checkpoint(copied):
    path = copied / "transformer" / "config.json"
    written = json.loads(path.read_text())
    written["meta"] |= {"caption_dropout": 0.1, "guidance": 3.0}
    path.write_text(json.dumps(written))
    dalle = DALLE.load(copied)
    asked, plain = (dalle.generate(CAPTION, candidates=3, keep=3, guidance=scale).tokens for scale in (3.0, 1.0))
    assert dalle.generate(CAPTION, candidates=3, keep=3).tokens.equal(asked)
    assert not asked.equal(plain)


def test_resolved_settings_are_those_of_the_checkpoint_where_none_is_set(dalle, monkeypatch):
    monkeypatch.setattr(dalle, "defaults", SamplingDefaults(0.1, guidance=3.0, temperature=0.7, rerank="mixture"))
    resolved = dalle.resolve(SamplingConfig(temperature=0.5, seed=4))
    assert resolved == SamplingConfig(guidance=3.0, temperature=0.5, rerank="mixture", seed=4, keep=8)
    assert dalle.resolve(resolved) == resolved


def test_limited_memory_gives_the_same_images(dalle):
    needs = decoding_memory(dalle.transformer, recompute_kv=True)
    little = str((needs.caption + 3.5 * needs.candidate) / 10**9)
    assert dalle.choose_decoding(1, SamplingConfig(candidates=8, memory=little)).choice.batch_size.images == 3
    (result,) = dalle.generate_many([CAPTION], candidates=8, keep=8, memory=little)
    assert result.candidates == dalle.generate(CAPTION, candidates=8, keep=8).candidates
    with pytest.raises(ValueError, match="sampling one image takes"):
        dalle.generate_many([CAPTION], candidates=8, keep=8, memory="1e-9")


def test_positional_setting_raises(checkpoints):
    with pytest.raises(TypeError, match="must be a SamplingConfig, not 64; give settings by name, as candidates=64"):
        DALLE.load(checkpoints).generate("a red circle", 64)


def test_models_in_train_mode_are_put_in_eval_mode(checkpoints):
    loaded = DALLE.load(checkpoints)
    models = [loaded.dvae, loaded.transformer, loaded.clip]
    for model in models:
        model.train()
    DALLE(loaded.dvae, loaded.transformer, loaded.tokenizer, loaded.clip)
    assert not any(module.training for model in models for module in model.modules())


def test_kept_images_are_pasted_on_their_own_tokens(dalle):
    tokens = torch.zeros(3, 4, 4, dtype=torch.int64)
    for candidate in range(3):
        tokens[candidate, candidate] = MASKED
    canvas = Canvas(tokens, pixels=Image.new("RGB", (8, 8), (1, 2, 3)))
    result = dalle.generate(CAPTION, candidates=3, keep=2, canvas=canvas)
    for candidate, image in zip(result.candidates, result.images, strict=True):
        kept = [row for row in range(8) if row // 2 != candidate]
        assert all(image.getpixel((column, row)) == (1, 2, 3) for row in kept for column in range(8))


def test_integers_of_numpy_and_torch_are_seeds_and_offsets(dalle):
    expected = dalle.generate(CAPTION, candidates=2, keep=2, seed=3, candidate_offset=4)
    for kind in (np.int32, np.int64, np.uint8, torch.tensor):
        result = dalle.generate(CAPTION, candidates=2, keep=2, seed=kind(3), candidate_offset=kind(4))
        assert result.tokens.equal(expected.tokens)
        assert result.candidates == expected.candidates
    several = [CAPTION, CAPTION]
    results = dalle.generate_many(several, candidates=2, keep=2, seed=3, candidate_offset=np.array([4, 4]))
    assert all(result.tokens.equal(expected.tokens) for result in results)


def test_one_text_for_several_captions_and_a_list_for_one_are_refused(dalle):
    for call in (dalle.generate_many, lambda captions: dalle.clip.score([Image.new("RGB", (8, 8))], captions)):
        with pytest.raises(TypeError, match=r"captions must be a list of texts, not the text 'red': write \['red'\]"):
            call("red")
    with pytest.raises(TypeError, match=r"a caption must be a text, not \['a'\]"):
        dalle.generate(["a"])
