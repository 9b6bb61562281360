"""Checkpoints of CLIP: weights, sizes and tokenizer are those that were saved."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_clip import CAPTIONS, noise

from dalle.checkpoint import CheckpointError
from dalle.clip_tokenizer import CLIPTokenizer
from dalle.models.clip.model import CLIP


def test_saved_model_has_the_same_scores_and_its_tokenizer(clip, tmp_path):
    with torch.no_grad():
        clip.log_scale.fill_(1.5)
    clip.save(tmp_path, meta={"step": 3})
    loaded = CLIP.load(tmp_path)
    assert loaded.config == clip.config
    assert not loaded.training
    assert loaded.scale.equal(clip.scale)
    assert loaded.tokenize(CAPTIONS).equal(clip.tokenize(CAPTIONS))
    images = [noise(17, 12, seed) for seed in range(3)]
    assert loaded.score(images, CAPTIONS).equal(clip.score(images, CAPTIONS))


def test_missing_tokenizer_raises(clip, tmp_path):
    clip.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        CLIP.load(tmp_path)


@pytest.mark.parametrize("kind", ["openai", "huggingface"])
def test_published_tokenizer_round_trips(kind, clip_config, tmp_path):
    (tmp_path / "merges.txt").write_text("t h\nth e</w>\n")
    published = CLIPTokenizer.from_merges(tmp_path / "merges.txt", 516, openai=kind == "openai")
    sizes = replace(clip_config, text_vocabulary=520, tokenizer=kind, start_id=514, end_id=515)
    clip = CLIP(sizes, published).eval()
    clip.save(tmp_path / "checkpoint")
    loaded = CLIP.load(tmp_path / "checkpoint")
    assert loaded.config == sizes
    captions = ["The &amp; the", "the"]
    assert loaded.tokenize(captions).equal(clip.tokenize(captions))
    assert loaded.tokenize(captions)[1].tolist()[:4] == [514, 513, 515, 0]
    assert (loaded.tokenize(captions)[0, 4] == 515) == (kind == "openai")  # the other reads four more letters
    assert loaded.score([noise(9, 9)], captions).equal(clip.score([noise(9, 9)], captions))


def test_resnet_batch_norm_statistics_round_trip(clip_config, clip_tokenizer, tmp_path):
    sizes = replace(
        clip_config, image_encoder="resnet", image_size=32, image_width=4, image_blocks=(1, 1, 1, 2), image_heads=4
    )
    clip = CLIP(sizes, clip_tokenizer)
    clip.encode_image(torch.rand(4, 3, 32, 32))  # in training, norms average over batches
    clip.eval().save(tmp_path)
    loaded = CLIP.load(tmp_path)
    assert loaded.config == sizes
    assert loaded.score([noise(40, 33)], CAPTIONS).equal(clip.score([noise(40, 33)], CAPTIONS))
    assert loaded.image.stem[0].norm.num_batches_tracked == 1


def test_settings_that_a_checkpoint_lacks_have_their_defaults(clip, tmp_path):
    clip.save(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    known = ("image_size", "patch", "image_width", "image_depth", "image_heads", "embedding", "initial_temperature")
    known += ("max_logit_scale", "text_vocabulary", "text_positions", "text_width", "text_depth", "text_heads")
    written["model"] = {name: written["model"][name] for name in known}
    (tmp_path / "config.json").write_text(json.dumps(written))
    loaded = CLIP.load(tmp_path)
    assert loaded.config == clip.config
    assert loaded.score([noise(9, 9)], CAPTIONS).equal(clip.score([noise(9, 9)], CAPTIONS))
