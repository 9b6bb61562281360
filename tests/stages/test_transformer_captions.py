"""Captions in the transformer stage: BPE dropout, dropped captions, guidance, and the tokenizer."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_stages import BLOCKS, CONFIGS, CPU, build, overfit

from dalle.data.folder import FolderConfig
from dalle.models.transformer.sequence import PAD
from dalle.sampling.pipeline import DALLE
from dalle.stages import STAGES
from dalle.stages.data_module import StageContext
from dalle.stages.transformer import TransformerStageConfig
from dalle.tokenizer import CaptionTokenizer


def captions(stage, number: int) -> torch.Tensor:
    return next(stage.batches(number)).caption


def without_dropout(stage, number: int) -> torch.Tensor:
    words = next(stage.data.batches(number)).captions
    return stage.model.sequence.pad_captions([stage.tokenizer.encode(caption) for caption in words], truncate=True)


def test_bpe_dropout_is_reproducible_by_batch_number(dvae_folder):
    stage = build("transformer", dvae_folder, bpe_dropout=0.5)
    stream = stage.batches(0)
    first = [next(stream).caption for _ in range(3)]
    assert captions(stage, 2).equal(first[2])
    assert captions(build("transformer", dvae_folder, bpe_dropout=0.5), 2).equal(first[2])
    for number in range(3):
        assert not first[number].equal(without_dropout(stage, number))


def test_bpe_dropout_differs_between_images_and_epochs(dvae_folder):
    one_caption = replace(BLOCKS, train=1, wordings=1)
    stage = build("transformer", dvae_folder, one_caption, bpe_dropout=0.5)
    seen = torch.cat([captions(stage, number) for number in range(2)])
    assert seen.unique(dim=0).shape[0] > 12  # of 16 times the same caption
    spelt = {stage.tokenizer.decode([token for token in row if token != PAD]) for row in seen.tolist()}
    (caption,) = stage.data.train[0].captions
    assert all(stage.tokenizer.normalise(caption).startswith(text) for text in spelt)  # the longest are cut


def test_no_bpe_dropout_in_validation(dvae_folder):
    plain, dropping = (build("transformer", dvae_folder, bpe_dropout=share) for share in (0.0, 0.5))
    assert captions(plain, 1).equal(without_dropout(plain, 1))
    assert dropping.validate(dropping.model) == plain.validate(plain.model)


def test_captions_are_dropped_with_the_given_probability_and_reproducibly(dvae_folder):
    stage = build("transformer", dvae_folder, caption_dropout=0.3)
    stream = stage.batches(0)
    batches = [next(stream).caption for _ in range(40)]
    empty = [(caption == PAD).all(dim=1) for caption in batches]
    assert torch.cat(empty).float().mean().item() == pytest.approx(0.3, abs=0.08)  # of 320
    halves = build("transformer", dvae_folder, caption_dropout=0.3, accumulate=2).batches(6)
    assert torch.cat([next(halves).caption, next(halves).caption]).equal(batches[3])
    plain = build("transformer", dvae_folder)
    for number, left_out in enumerate(empty[:4]):
        assert batches[number][~left_out].equal(captions(plain, number)[~left_out])


def test_validation_captions_are_never_dropped(dvae_folder):
    stage, plain = build("transformer", dvae_folder, caption_dropout=0.9), build("transformer", dvae_folder)
    assert stage.validate(stage.model) == plain.validate(plain.model)


@torch.no_grad()
def test_dropped_captions_have_no_text_loss(dvae_folder):
    stage = build("transformer", dvae_folder)
    for head in (stage.model.text_head, stage.model.image_head):
        head.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    batch = next(stage.batches(0))
    some = replace(batch, caption=batch.caption.index_fill(0, torch.tensor([0, 5]), PAD))
    kept = [row for row in range(8) if row not in (0, 5)]
    others = replace(batch, caption=batch.caption[kept], image=batch.image[kept], image_targets=batch.image[kept])
    text, image = stage._nll(stage.model, some)
    torch.testing.assert_close(text, stage._nll(stage.model, others)[0])
    answer = stage.model(some.caption, some.image).image
    torch.testing.assert_close(image, F.cross_entropy(answer.flatten(0, 1), some.image.flatten()))
    text, image = stage._nll(stage.model, replace(batch, caption=torch.full_like(batch.caption, PAD)))
    assert text == 0
    assert image.isfinite()


@pytest.fixture
def partly_captioned(tmp_path) -> FolderConfig:
    """Return the config of a folder of 16 images, every other one without a caption."""
    for number in range(16):
        Image.new("RGB", (16, 16), (16 * number, 0, 0)).save(tmp_path / f"{number}.png")
        if number % 2:
            (tmp_path / f"{number}.txt").write_text(f"red {number}")
    return FolderConfig(path=str(tmp_path), image_size=16, validation_share=0.4, allow_missing_captions=True)


@torch.no_grad()
def test_images_without_captions_are_trained_on_as_if_their_captions_were_dropped(dvae_folder, partly_captioned):
    stage = build("transformer", dvae_folder, partly_captioned, bpe_dropout=0.1)
    batch = next(stage.batches(0))
    empty = {key for key, caption in zip(batch.keys, batch.caption, strict=True) if (caption == PAD).all()}
    assert empty == {key for key in batch.keys if int(key.removesuffix(".png")) % 2 == 0}
    assert 0 < len(empty) < len(batch.keys)
    text, image = stage._nll(stage.model, batch)
    rows = [row for row, key in enumerate(batch.keys) if key not in empty]
    others = replace(batch, caption=batch.caption[rows], image=batch.image[rows], image_targets=batch.image[rows])
    torch.testing.assert_close(text, stage._nll(stage.model, others)[0])
    assert image.isfinite()
    assert stage.validate(stage.model)["text"] > 0
    assert stage.preview(stage.model) is not None


def test_only_images_without_captions_train_an_unconditional_model(dvae_folder, partly_captioned):
    for captions in Path(partly_captioned.path).glob("*.txt"):
        captions.unlink()
    stage = build("transformer", dvae_folder, partly_captioned)
    assert (next(stage.batches(0)).caption == PAD).all()
    assert stage.validate(stage.model)["text"] == 0
    assert stage.preview(stage.model) is None


def test_clip_leaves_out_images_without_captions(partly_captioned):
    stage = build("clip", data=partly_captioned)
    kept = [*stage.data.train.keys(), *stage.data.val.keys()]
    assert {int(key.removesuffix(".png")) for key in kept} == set(range(1, 16, 2))


def test_only_checkpoints_trained_with_dropped_captions_can_use_guidance(dvae_folder, tmp_path):
    for share in (0.0, 0.5):
        stage = build("transformer", dvae_folder, caption_dropout=share)
        overfit(stage, next(stage.batches(0)), 4, 1e-2)
        stage.save(tmp_path / str(share), stage.model, {})
    with pytest.raises(ValueError, match="train one with stage.caption_dropout"):
        DALLE.load(tmp_path / "0.0").generate("a red circle", candidates=1, keep=1, guidance=2.0)
    assert DALLE.load(tmp_path / "0.5").generate("a red circle", candidates=1, keep=1, guidance=2.0).num_sampled == 1


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_invalid_caption_dropout_raises_before_training(share):
    with pytest.raises(ValueError, match=f"caption_dropout={share} must be at least 0 and below 1"):
        TransformerStageConfig(caption_dropout=share)


def test_checkpoint_guidance_requires_caption_dropout(dvae_folder, tmp_path):
    stage = build("transformer", dvae_folder, caption_dropout=0.1, guidance=2.0)
    stage.save(tmp_path, stage.model, {})
    assert DALLE.load(tmp_path).defaults.guidance == 2.0
    with pytest.raises(ValueError, match="guidance=2.0 needs training with dropped captions: set caption_dropout=0.1"):
        TransformerStageConfig(guidance=2.0)


def test_tokenizer_is_trained_on_evenly_spaced_training_captions(dvae_folder):
    stage = build("transformer", dvae_folder, tokenizer_records=1)
    (caption, *others) = stage.data.train[0].captions
    everything = build("transformer", dvae_folder, tokenizer_records=64)
    assert 256 < stage.tokenizer.vocabulary <= 288
    assert len(stage.tokenizer.encode(caption)) <= len(everything.tokenizer.encode(caption))
    assert everything.tokenizer.vocabulary == 288


def test_given_tokenizer_is_used(dvae_folder, tmp_path):
    learned = build("transformer", dvae_folder, tokenizer_records=64).tokenizer
    learned.save(tmp_path / "tokenizer.json")
    taken = build("transformer", dvae_folder, tokenizer_records=1, tokenizer=str(tmp_path / "tokenizer.json"))
    assert taken.model.config.text_vocabulary == 288
    assert taken.tokenizer.encode("a small red circle") == learned.encode("a small red circle")
    small = replace(CONFIGS["transformer"].model, text_vocabulary=287)
    with pytest.raises(
        ValueError,
        match=r"tokenizer\.json has 288 entries, more than .* allows \(287\): raise",
    ):
        build("transformer", dvae_folder, model=small, tokenizer=str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize("change", ["rewritten", "deleted", "none"])
def test_a_resumed_run_keeps_its_own_tokenizer_and_warns_if_the_named_file_changed(
    dvae_folder, tmp_path, caplog, change
):
    named = tmp_path / "named.json"
    build("transformer", dvae_folder, tokenizer_records=64).tokenizer.save(named)
    run = tmp_path / "run"
    begun = build("transformer", dvae_folder, tokenizer=str(named))
    begun.save(run, begun.model, {})
    if change == "rewritten":
        CaptionTokenizer.train(["zebra zebra quagga quagga"] * 9, 288).save(named)
    if change == "deleted":
        named.unlink()
    config = replace(CONFIGS["transformer"], tokenizer=str(named))
    context = StageContext(0, CPU, dvae_folder, resume_folder=run)
    resumed = STAGES["transformer"].build(config, BLOCKS, context)
    assert resumed.tokenizer.encode("a small red circle") == begun.tokenizer.encode("a small red circle")
    assert ("the run keeps" in caplog.text) == (change != "none")


@pytest.mark.parametrize("accumulate", [2, 8])
def test_accumulated_losses_weight_each_text_token_equally(dvae_folder, accumulate):
    """Captions have different lengths, and some are dropped, so micro-batches differ in their numbers of tokens."""
    whole, parts = (
        build("transformer", dvae_folder, pad_loss="none", caption_dropout=0.3, accumulate=number)
        for number in (1, accumulate)
    )
    with torch.no_grad():  # new models are uniform over the vocabulary, and all tokens have the same loss
        for stage in (whole, parts):
            for head in (stage.model.text_head, stage.model.image_head):
                head.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator()
    losses = []
    for stage, count in ((whole, 1), (parts, accumulate)):
        batches = list(islice(stage.batches(3 * count), count))
        stage.before_update(3, batches)
        losses.append(torch.stack([stage.loss(stage.model, batch, 3, generator)[0] for batch in batches]).mean())
    torch.testing.assert_close(*losses)
    lengths = {int((batch.caption != PAD).sum()) for batch in islice(parts.batches(3 * accumulate), accumulate)}
    assert len(lengths) > 1


def test_checkpoint_has_the_default_score_for_ranking(dvae_folder, tmp_path):
    for rerank in ("clip", "mixture"):
        stage = build("transformer", dvae_folder, sampling_rerank=rerank)
        stage.save(tmp_path / rerank, stage.model, {})
        assert DALLE.load(tmp_path / rerank).defaults.rerank == rerank
    with pytest.raises(
        ValueError, match="sampling_rerank=caption_likelihood is no default score; choose one of clip, "
    ):
        TransformerStageConfig(sampling_rerank="caption_likelihood")
