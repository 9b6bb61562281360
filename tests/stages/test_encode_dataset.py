"""Training on cached tokens: equal to training on images, and caches of other settings are refused."""

import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_stages import BLOCKS, CPU, build

from dalle.data import open_source
from dalle.data.folder import FolderConfig
from dalle.data.token_cache import PENDING, TokenCache, TokenCacheMismatch
from dalle.models.dvae.model import DiscreteVAE
from dalle.stages.encode_dataset import DatasetEncoder, summary
from dalle.stages.transformer import TransformerStageConfig
from dalle.training.logger import WandbConfig
from dalle.training.loop import train
from dalle.training.run import Run

EPOCH = BLOCKS.train // 8  # steps


def stage_of(dvae: Path, tokens: Path | None, **changes):
    return build("transformer", dvae, tokens=tokens, **({"steps": 2 * EPOCH} | changes))


def assert_same(one, other, steps: int, start: int = 0) -> None:
    pairs = zip(one.batches(start), other.batches(start), strict=True)
    for a, b in islice(pairs, steps):
        assert a.caption.equal(b.caption)
        assert a.image.equal(b.image)
        assert a.image_targets.equal(b.image_targets)


def never_encode(stage, monkeypatch) -> None:
    monkeypatch.setattr(stage.dvae, "logits", lambda _: pytest.fail("encoded"))


def test_training_on_cached_tokens_matches_training_on_images_bitwise(dvae_folder, tmp_path):
    weights = []
    for tokens in (None, tmp_path / "tokens"):
        stage = stage_of(dvae_folder, tokens, bpe_dropout=0.5, caption_dropout=0.2, steps=EPOCH + 2)
        assert (stage.cache is None) == (tokens is None)
        run = Run(tmp_path / str(tokens is None), {"stage": {"steps": EPOCH + 2}}, wandb=WandbConfig("disabled"))
        train(stage, stage.config, run)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in stage.model.parameters()]))
    assert weights[0].equal(weights[1])


@pytest.fixture(scope="module")
def photographs(pictures_folder, tmp_path_factory) -> FolderConfig:
    """Return images larger than the model's, so that crops differ, four of them unreadable."""
    folder = Path(shutil.copytree(pictures_folder, tmp_path_factory.mktemp("photographs") / "all"))
    for number in range(4):
        (folder / f"broken{number}.png").write_bytes(b"")
        (folder / f"broken{number}.txt").write_text("nothing")
    return FolderConfig(path=str(folder), image_size=16, validation_share=0.2)


def test_cached_crops_match_augmented_crops_and_repeat_in_turn(dvae_folder, pictures_folder, tmp_path):
    data = FolderConfig(path=str(pictures_folder), image_size=16, validation_share=0.2)
    settings = {"transform": "transformer", "data": data, "batch_size": 1}
    fresh = stage_of(dvae_folder, None, **settings)
    kept = stage_of(dvae_folder, tmp_path, **settings, crops=2)
    records = len(fresh.data.train)
    assert_same(fresh, kept, 2 * records)
    first, second, third = (codes(kept, epoch * records, (epoch + 1) * records) for epoch in range(3))
    assert first == third
    assert first != second
    assert codes(fresh, 2 * records, 3 * records) != third


def codes(stage, start: int, stop: int) -> dict[str, list[int]]:
    """Return the tokens of each image, encoded in batches of one."""
    keys = [batch.keys[0] for batch in islice(stage.data.batches(start), stop - start)]
    return dict(zip(keys, (batch.image[0].tolist() for batch in stage.batches(start)), strict=False))


@pytest.mark.parametrize("settings", [{}, {"transform": "transformer", "crops": 3}], ids=str)
def test_unreadable_images_are_skipped_as_in_training_on_images(dvae_folder, photographs, tmp_path, caplog, settings):
    settings = {"data": photographs, "batch_size": 4, "steps": 20, **settings}
    tokens = stage_of(dvae_folder, tmp_path, **settings)
    settings["crops"] = 0
    records = len(tokens.data.train)
    assert_same(stage_of(dvae_folder, None, **settings), tokens, tokens.cache.settings.crops * records // 4)
    assert "could not be read" in summary(tokens.cache)
    assert "skipped unreadable record broken" in caplog.text


def test_dataset_is_encoded_once_for_all_runs(dvae_folder, tmp_path, monkeypatch):
    first = stage_of(dvae_folder, tmp_path / "tokens")
    monkeypatch.setattr(DiscreteVAE, "logits", lambda *_: pytest.fail("encoded again"))
    again = stage_of(dvae_folder, tmp_path / "tokens", seed=1, steps=5 * EPOCH)
    assert again.cache.folder == first.cache.folder
    next(again.batches(0))


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, True),
        ({"steps": EPOCH}, False),  # no picture comes again
        ({"transform": "transformer"}, False),  # the paper's: another crop each time
        ({"image_targets": "sampled"}, False),
        ({"transform": "transformer", "crops": 1}, True),
        ({"steps": EPOCH, "crops": 1}, True),
    ],
    ids=str,
)
def test_tokens_are_cached_if_deterministic_or_crops_are_given(dvae_folder, tmp_path, settings, kept):
    assert (stage_of(dvae_folder, tmp_path / "tokens", **settings).cache is not None) == kept
    assert (tmp_path / "tokens").exists() == kept


def test_held_out_images_are_encoded_once(dvae_folder, monkeypatch):
    stage = stage_of(dvae_folder, None)
    found = stage.validate(stage.model)
    never_encode(stage, monkeypatch)
    assert stage.validate(stage.model) == found


# --- stopped midway ------------------------------------------------------------------------------------------


def test_interrupted_encoding_resumes(dvae_folder, tmp_path, monkeypatch):
    written: list = []
    write = TokenCache.write

    def stopping(cache, block, *rest):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(block)
        write(cache, block, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(TokenCache, "write", stopping)
        stage_of(dvae_folder, tmp_path / "tokens")
    monkeypatch.setattr(TokenCache, "write", lambda *given: (written.append(given[1]), write(*given)))
    whole = stage_of(dvae_folder, tmp_path / "tokens").cache
    assert [block.first for block in written] == [0, 32]
    assert whole.count(PENDING) == 0
    assert (whole.tokens == stage_of(dvae_folder, tmp_path / "other").cache.tokens).all()


# --- of something else ---------------------------------------------------------------------------------------


def test_other_dvae_or_data_get_their_own_cache(dvae_folder, tmp_path):
    other = Path(shutil.copytree(dvae_folder, tmp_path / "dvae"))
    dvae = DiscreteVAE.load(other)
    with torch.no_grad():
        next(dvae.parameters()).add_(0.1)
    dvae.save(other)
    tokens = tmp_path / "tokens"
    stages = [stage_of(dvae_folder, tokens), stage_of(other, tokens), stage_of(dvae_folder, tokens, data=fewer())]
    assert len({stage.cache.folder for stage in stages}) == 3
    with pytest.raises(TokenCacheMismatch, match="the digest of the dVAE was [0-9a-f]+ and is now [0-9a-f]+"):
        stage_of(other, stages[0].cache.folder)
    with pytest.raises(TokenCacheMismatch, match="the digest of the records was [0-9a-f]+ and is now"):
        stage_of(dvae_folder, stages[0].cache.folder, data=fewer())


def fewer():
    return replace(BLOCKS, train=40)


def test_an_unknown_transform_is_refused_before_a_cache_is_made(dvae_folder, tmp_path):
    source = open_source(BLOCKS, "train")
    with pytest.raises(ValueError, match="transformr"):
        DatasetEncoder(BLOCKS, source, "transformr", 1, dvae_folder, CPU)


def test_given_cache_is_used_or_its_difference_reported(dvae_folder, tmp_path):
    folder = stage_of(dvae_folder, tmp_path / "a", transform="transformer", crops=2).cache.folder
    assert stage_of(dvae_folder, folder, transform="transformer", crops=2).cache.folder == folder
    with pytest.raises(TokenCacheMismatch, match="crops was 2 and is now 1"):
        stage_of(dvae_folder, folder, transform="transformer", crops=1)
    with pytest.raises(ValueError, match=r"tokens=.* is a token cache, but stage.crops=0 encodes a new crop"):
        stage_of(dvae_folder, folder, transform="transformer")
    with pytest.raises(TokenCacheMismatch, match="transform was transformer and is now none"):
        stage_of(dvae_folder, folder, steps=1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"crops": 2, "transform": "none"}, "crops=2 must be 1: without a transform, all crops"),
        ({"crops": -1}, "crops=-1 must be at least 1"),
        ({"crops": 2, "image_targets": "soft"}, "crops=2 caches argmax tokens, so image_targets=soft needs crops=0"),
    ],
    ids=str,
)
def test_invalid_crops_raise_before_training(settings, said):
    with pytest.raises(ValueError, match=said):
        TransformerStageConfig(**settings)


def test_cached_tokens_match_dvae_codes(dvae_folder, tmp_path):
    source = open_source(BLOCKS, "train")
    encoder = DatasetEncoder(BLOCKS, source, "none", 1, dvae_folder, CPU)
    dvae = DiscreteVAE.load(dvae_folder)
    cache = encoder.open_cache(encoder.cache_folder(tmp_path), dvae, workers=0)
    assert summary(cache) == "64 images in 1 crops of 16 tokens each"
    for index in (0, 40, 63):
        pixels = torch.from_numpy(np.array(source[index].image)).permute(2, 0, 1)[None] / 255
        assert cache.read([0], [index])[0].tolist() == dvae.encode(pixels).flatten().tolist()
