"""CLIP: image and text encoders, and scores of images and captions."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_clip import CAPTIONS, noise, pixels

from dalle.models.clip.model import CLIP, CLIPConfig

# --- the towers ------------------------------------------------------------------------------------------------


def test_defaults_are_vit_b_32():
    with torch.device("meta"):
        model = CLIP(CLIPConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 151_277_313
    assert sum(parameter.numel() for parameter in model.image.parameters()) == 87_849_216


@torch.no_grad()
def test_features_are_unit_vectors_of_one_size(clip):
    images, captions = clip.encode_image(pixels(3)), clip.encode_text(clip.tokenize(CAPTIONS[:2]))
    assert images.shape == (3, 8)
    assert captions.shape == (2, 8)
    for features in (images, captions):
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)))
        assert not torch.allclose(features[0], features[1], atol=1e-3)
    together = clip(pixels(3), clip.tokenize(CAPTIONS[:2]))
    assert together[0].equal(images)
    assert together[1].equal(captions)


@torch.no_grad()
def test_features_depend_on_every_patch_and_its_position(clip):
    image = pixels(1)
    before = clip.encode_image(image)
    for y in range(0, 12, 4):
        for x in range(0, 12, 4):
            changed = image.clone()
            changed[:, :, y : y + 4, x : x + 4] = 0.5
            assert not torch.allclose(clip.encode_image(changed), before, atol=1e-4)
    assert not torch.allclose(clip.encode_image(image.flip(-1)), before, atol=1e-4)


@torch.no_grad()
def test_text_after_the_end_token_does_not_change_the_feature(clip):
    ids = clip.tokenize([CAPTIONS[1]])
    end = ids[0].tolist().index(clip.config.end_token)
    assert 2 < end < ids.shape[1] - 5
    before = clip.encode_text(ids)
    after_the_end, inside = ids.clone(), ids.clone()
    after_the_end[0, end + 1 :] = 7
    inside[0, end - 1] = 7
    torch.testing.assert_close(clip.encode_text(after_the_end), before)
    torch.testing.assert_close(clip.encode_text(ids[:, : end + 1]), before)
    assert not torch.allclose(clip.encode_text(inside), before, atol=1e-4)


@pytest.mark.parametrize("end_id", [None, 5])
def test_trimmed_captions_have_the_same_features_and_gradients(end_id, clip_config, clip_tokenizer):
    torch.manual_seed(0)
    clip = CLIP(replace(clip_config, end_id=end_id), clip_tokenizer)
    ids = clip.tokenize(["red", CAPTIONS[1]])
    longest = int((ids == clip.config.end_token).nonzero()[:, 1].max()) + 1
    trimmed = clip.trim_padding(ids)
    assert longest <= trimmed.shape[1] < min(longest + 8, ids.shape[1])
    found = []
    for captions in (ids, trimmed):
        features = clip.encode_text(captions)
        found.append([features, *torch.autograd.grad(features.square().sum(0)[0], list(clip.text.parameters()))])
    torch.testing.assert_close(found[1], found[0])
    full = torch.full((1, clip_config.text_positions), 7).index_fill(1, torch.tensor([31]), clip.config.end_token)
    assert clip.trim_padding(full).shape == full.shape


@torch.no_grad()
def test_feature_does_not_depend_on_the_batch(clip):
    ids = clip.tokenize(CAPTIONS)
    images, captions = clip.encode_image(pixels(4)), clip.encode_text(ids)
    for row in range(4):
        torch.testing.assert_close(clip.encode_image(pixels(4)[row : row + 1])[0], images[row])
    for row in range(3):
        torch.testing.assert_close(clip.encode_text(ids[row : row + 1])[0], captions[row])


@torch.no_grad()
def test_features_are_float32_unit_vectors_under_autocast(clip):
    with torch.autocast("cpu", torch.bfloat16):
        images, captions, _ = clip(pixels(2), clip.tokenize(CAPTIONS[:2]))
    for features in (images, captions):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(2))


def test_logit_scale_starts_at_the_papers_value_and_is_clamped_at_100(clip):
    assert clip.scale.item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        clip.log_scale.fill_(math.log(99))
    assert clip.scale.item() == pytest.approx(99, rel=1e-5)
    with torch.no_grad():
        clip.log_scale.fill_(math.log(101))
    assert clip.scale.item() == 100
    assert clip(pixels(1), clip.tokenize(CAPTIONS[:1]))[2].item() == 100


@torch.no_grad()
def test_text_feature_is_read_at_the_given_end_token_or_largest_id(clip_config, clip):
    told = CLIP(replace(clip_config, end_id=5)).eval()
    told.load_state_dict(clip.state_dict())
    ids = torch.tensor([[clip_config.start_token, 9, 5, clip_config.end_token, 5]])
    for model, length in ((told, 3), (clip, 4)):
        torch.testing.assert_close(model.encode_text(ids), model.encode_text(ids[:, :length]))
        assert not torch.allclose(model.encode_text(ids), model.encode_text(ids[:, : length - 1]), atol=1e-3)


# --- scores ----------------------------------------------------------------------------------------------------


def test_score_is_the_cosine_similarity_of_image_and_caption(clip):
    images = [noise(12, 12, seed) for seed in range(5)]
    scores = clip.score(images, CAPTIONS)
    assert scores.shape == (5, 3)
    assert scores.min() >= -1
    assert scores.max() <= 1
    with torch.no_grad():
        for i, image in enumerate(images):
            for j, caption in enumerate(CAPTIONS):
                picture, words = clip.encode_image(clip.preprocess([image])), clip.encode_text(clip.tokenize([caption]))
                assert scores[i, j].item() == pytest.approx((picture * words).sum().item(), abs=1e-5)
    torch.testing.assert_close(clip.score(images, CAPTIONS, batch_size=2), scores)
    assert not scores.requires_grad


def test_no_images_or_no_captions_give_no_scores(clip):
    images = [noise(12, 12), noise(9, 9)]
    assert clip.score([], CAPTIONS).shape == (0, 3)
    assert clip.score(images, []).shape == (2, 0)
    assert clip.score([], []).shape == (0, 0)


@pytest.mark.parametrize("encoder", ["vit", "resnet"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_clip_of_every_dtype_has_nearly_the_same_scores(encoder, dtype, clip_config, clip_tokenizer):
    torch.manual_seed(0)
    resnet = {"image_size": 32, "image_width": 4, "image_blocks": (1, 1, 1, 1), "image_heads": 4}
    clip = CLIP(
        replace(clip_config, image_encoder=encoder, **(resnet if encoder == "resnet" else {})), clip_tokenizer
    ).eval()
    images = [noise(32, 32, seed) for seed in range(3)]
    expected = clip.score(images, CAPTIONS)
    scores = clip.to(dtype).score(images, CAPTIONS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5 if dtype == torch.float64 else 0.03)


def test_too_long_captions_are_truncated_for_scores(clip):
    long = " ".join(CAPTIONS * 3)
    longer = long + " and more"
    torch.testing.assert_close(clip.score([noise(12, 12)], [long]), clip.score([noise(12, 12)], [longer]))
