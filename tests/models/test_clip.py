"""CLIP: image and text encoders, scores, preprocessing, and checkpoints."""

import json
import math
from dataclasses import replace
from math import inf, nan

import pytest
import torch
from PIL import Image

from dalle.checkpoint import CheckpointError
from dalle.clip_tokenizer import CLIPTokenizer
from dalle.models.clip.model import CLIP, CLIPConfig
from dalle.tokenizer import CaptionTokenizer

CAPTIONS = ["a small red circle above a large blue square", "three green triangles", "one circle left of a square"]


@pytest.fixture(scope="module")
def tokenizer() -> CaptionTokenizer:
    return CaptionTokenizer.train(CAPTIONS * 4, 280)


@pytest.fixture(scope="module")
def config(tokenizer) -> CLIPConfig:
    return CLIPConfig(
        image_size=12,
        patch=4,
        image_width=16,
        image_depth=2,
        image_heads=2,
        text_vocabulary=tokenizer.vocabulary + 2,
        text_positions=32,
        text_width=12,
        text_depth=2,
        text_heads=3,
        embedding=8,
    )


@pytest.fixture
def clip(config, tokenizer) -> CLIP:
    torch.manual_seed(0)
    return CLIP(config, tokenizer).eval()


def pixels(batch: int, side: int = 12) -> torch.Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy())


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
def test_trimmed_captions_have_the_same_features_and_gradients(end_id, config, tokenizer):
    torch.manual_seed(0)
    clip = CLIP(replace(config, end_id=end_id), tokenizer)
    ids = clip.tokenize(["red", CAPTIONS[1]])
    longest = int((ids == clip.config.end_token).nonzero()[:, 1].max()) + 1
    trimmed = clip.trim_padding(ids)
    assert longest <= trimmed.shape[1] < min(longest + 8, ids.shape[1])
    found = []
    for captions in (ids, trimmed):
        features = clip.encode_text(captions)
        found.append([features, *torch.autograd.grad(features.square().sum(0)[0], list(clip.text.parameters()))])
    torch.testing.assert_close(found[1], found[0])
    full = torch.full((1, config.text_positions), 7).index_fill(1, torch.tensor([31]), clip.config.end_token)
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
def test_text_feature_is_read_at_the_given_end_token_or_largest_id(config, clip):
    told = CLIP(replace(config, end_id=5)).eval()
    told.load_state_dict(clip.state_dict())
    ids = torch.tensor([[config.start_token, 9, 5, config.end_token, 5]])
    for model, length in ((told, 3), (clip, 4)):
        torch.testing.assert_close(model.encode_text(ids), model.encode_text(ids[:, :length]))
        assert not torch.allclose(model.encode_text(ids), model.encode_text(ids[:, : length - 1]), atol=1e-3)


def test_indivisible_sizes_raise():
    with pytest.raises(ValueError, match="image_size=30 must be a multiple of patch=8"):
        CLIPConfig(image_size=30, patch=8)
    with pytest.raises(ValueError, match="image_width=768 must be a multiple of image_heads=7"):
        CLIPConfig(image_heads=7)
    with pytest.raises(ValueError, match="text_width=512 must be a multiple of text_heads=7"):
        CLIPConfig(text_heads=7)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_encoder": "mixer"}, "image_encoder='mixer' is unknown; choose one of vit, resnet"),
        ({"resample": "cubic"}, "resample='cubic' is unknown; choose one of nearest, "),
        ({"crop_rounding": "up"}, "crop_rounding='up' is unknown; choose one of down, even"),
        ({"tokenizer": "word"}, "tokenizer='word' is unknown; choose one of dalle, openai, huggingface"),
        ({"shorter_side": 200}, "shorter_side=200 must be at least image_size=224"),
    ],
)
def test_unknown_options_raise(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        CLIPConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"text_positions": 2}, "text_positions=2 must be at least 3"),
        ({"text_vocabulary": 2}, "text_vocabulary=2 must be at least 3"),
        ({"start_id": 7, "end_id": 7}, "start_id and end_id are both 7"),
        ({"start_id": 49_407}, "start_id and end_id are both 49407"),
        ({"image_mlp": 0}, "image_mlp=0 must be at least 1"),
        ({"text_mlp": -4}, "text_mlp=-4 must be at least 1"),
        *(
            ({name: value}, f"{name}={value} must be a finite number above 0")
            for name in ("initial_temperature", "max_logit_scale", "image_eps", "text_eps")
            for value in (0, nan, inf)
        ),
        ({"pixel_mean": (0, nan, 0)}, "pixel_mean=.* must be three finite numbers"),
        ({"pixel_std": (1, nan, 1)}, "pixel_std=.* must be three finite numbers above 0"),
        *(
            ({"image_encoder": "resnet", "image_blocks": blocks}, "image_blocks=.* must be four numbers of at least 1")
            for blocks in ((), (1, 1), (1, 1, 1, 1, 1), (1, 0, 1, 1), (1, 1, -1, 1))
        ),
    ],
    ids=str,
)
def test_sizes_that_no_clip_can_have_raise(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        CLIPConfig(**changes)


def test_tokenizer_without_room_for_start_and_end_tokens_raises(config, tokenizer, clip, tmp_path):
    words = tokenizer.vocabulary
    with pytest.raises(ValueError, match=f"{words} ids, but text_vocabulary={words + 1} has room for {words - 1}"):
        CLIP(replace(config, text_vocabulary=words + 1), tokenizer)
    clip.save(tmp_path)
    CaptionTokenizer.train([*CAPTIONS, "purple zigzags"] * 4, words + 1).save(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match=f"the tokenizer has {words + 1} ids"):
        CLIP.load(tmp_path)


# --- captions --------------------------------------------------------------------------------------------------


def test_caption_is_between_start_and_end_tokens_and_padded_with_zeros(clip, tokenizer):
    ids = clip.tokenize([CAPTIONS[0], ""])
    words = tokenizer.encode(CAPTIONS[0])
    start, end = tokenizer.vocabulary, tokenizer.vocabulary + 1
    assert ids.dtype == torch.int64
    assert ids.tolist() == [
        [start, *words, end] + [0] * (30 - len(words)),
        [start, end] + [0] * 30,
    ]


def test_too_long_caption_raises_or_is_truncated(clip, tokenizer):
    long = " ".join(CAPTIONS * 3)
    tokens = tokenizer.encode(long)
    assert len(tokens) > 30
    with pytest.raises(ValueError, match=rf"the caption has {len(tokens)} tokens, but CLIP reads at most 30: 'a small"):
        clip.tokenize([CAPTIONS[1], long])
    (ids,) = clip.tokenize([long], truncate=True).tolist()
    assert ids == [clip.config.start_token, *tokens[:30], clip.config.end_token]


def test_caption_of_maximum_length_is_complete(config, tokenizer):
    tokens = tokenizer.encode(CAPTIONS[0])
    (ids,) = CLIP(replace(config, text_positions=len(tokens) + 2), tokenizer).tokenize([CAPTIONS[0]]).tolist()
    assert ids[1:-1] == tokens
    with pytest.raises(ValueError, match="at most"):
        CLIP(replace(config, text_positions=len(tokens) + 1), tokenizer).tokenize([CAPTIONS[0]])


def test_captions_without_a_tokenizer_raise(config):
    with pytest.raises(ValueError, match="built without a tokenizer; load one"):
        CLIP(config).tokenize(CAPTIONS)


# --- pictures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(12, 12), (17, 40), (41, 16), (5, 7), (1, 9), (13, 12), (25, 25)])
def test_images_of_any_size_become_squares_in_the_unit_range(clip, size):
    prepared = clip.preprocess([noise(*size)])
    assert prepared.shape == (1, 3, 12, 12)
    assert prepared.min() >= 0
    assert prepared.max() <= 1


def test_centre_crop_keeps_aspect_ratio(clip):
    stripes = Image.new("RGB", (72, 24), "red")
    stripes.paste("lime", (24, 0, 48, 24))
    wide, tall = clip.preprocess([stripes]), clip.preprocess([stripes.rotate(90, expand=True)])
    green = torch.tensor([0.0, 1.0, 0.0])[:, None, None].expand(3, 12, 8)
    torch.testing.assert_close(wide[0, :, :, 2:-2], green, atol=0.02, rtol=0)
    torch.testing.assert_close(tall[0, :, 2:-2, :].transpose(1, 2), green, atol=0.02, rtol=0)


def test_image_of_the_right_size_is_unchanged(clip):
    image = noise(12, 12)
    assert clip.preprocess([image]).mul(255).round().byte().movedim(1, -1).numpy().tobytes() == image.tobytes()


def test_resize_before_crop_removes_a_margin(config, clip):
    wide = CLIP(replace(config, shorter_side=20))
    image = noise(20, 20)
    assert wide.preprocess([image]).equal(clip.preprocess([image.crop((4, 4, 16, 16))]))


@pytest.mark.parametrize(
    ("rounding", "lefts"), [("down", [0, 0, 1, 1, 2, 2, 3, 3]), ("even", [0, 0, 1, 2, 2, 2, 3, 4])]
)
def test_half_pixel_crop_offset_is_rounded_as_configured(config, clip, rounding, lefts):
    model = CLIP(replace(config, crop_rounding=rounding))
    for margin, left in enumerate(lefts):
        image = noise(12 + margin, 12)
        assert model.preprocess([image]).equal(clip.preprocess([image.crop((left, 0, left + 12, 12))]))


def test_images_are_resized_and_normalised_as_configured(config, clip):
    other = CLIP(replace(config, resample="nearest", pixel_mean=(0.1, 0.2, 0.3), pixel_std=(0.5, 0.6, 0.7))).eval()
    other.load_state_dict(clip.state_dict())
    assert other.preprocess([noise(24, 24)]).equal(
        clip.preprocess([noise(24, 24).resize((12, 12), Image.Resampling.NEAREST)])
    )
    mean, std = (torch.tensor(channels)[:, None, None] for channels in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    as_published = (pixels(2) - mean) / std * clip.pixel_std + clip.pixel_mean
    with torch.no_grad():
        torch.testing.assert_close(other.encode_image(pixels(2)), clip.encode_image(as_published))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_images_of_every_mode_are_read_as_rgb(clip, mode):
    image = noise(12, 12).convert(mode)
    assert clip.preprocess([image]).equal(clip.preprocess([image.convert("RGB")]))


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
def test_clip_of_every_dtype_has_nearly_the_same_scores(encoder, dtype, config, tokenizer):
    torch.manual_seed(0)
    resnet = {"image_size": 32, "image_width": 4, "image_blocks": (1, 1, 1, 1), "image_heads": 4}
    clip = CLIP(replace(config, image_encoder=encoder, **(resnet if encoder == "resnet" else {})), tokenizer).eval()
    images = [noise(32, 32, seed) for seed in range(3)]
    expected = clip.score(images, CAPTIONS)
    scores = clip.to(dtype).score(images, CAPTIONS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5 if dtype == torch.float64 else 0.03)


def test_too_long_captions_are_truncated_for_scores(clip):
    long = " ".join(CAPTIONS * 3)
    longer = long + " and more"
    torch.testing.assert_close(clip.score([noise(12, 12)], [long]), clip.score([noise(12, 12)], [longer]))


# --- checkpoints -----------------------------------------------------------------------------------------------


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
def test_published_tokenizer_round_trips(kind, config, tmp_path):
    (tmp_path / "merges.txt").write_text("t h\nth e</w>\n")
    published = CLIPTokenizer.from_merges(tmp_path / "merges.txt", 516, openai=kind == "openai")
    sizes = replace(config, text_vocabulary=520, tokenizer=kind, start_id=514, end_id=515)
    clip = CLIP(sizes, published).eval()
    clip.save(tmp_path / "checkpoint")
    loaded = CLIP.load(tmp_path / "checkpoint")
    assert loaded.config == sizes
    captions = ["The &amp; the", "the"]
    assert loaded.tokenize(captions).equal(clip.tokenize(captions))
    assert loaded.tokenize(captions)[1].tolist()[:4] == [514, 513, 515, 0]
    assert (loaded.tokenize(captions)[0, 4] == 515) == (kind == "openai")  # the other reads four more letters
    assert loaded.score([noise(9, 9)], captions).equal(clip.score([noise(9, 9)], captions))


def test_resnet_batch_norm_statistics_round_trip(config, tokenizer, tmp_path):
    sizes = replace(
        config, image_encoder="resnet", image_size=32, image_width=4, image_blocks=(1, 1, 1, 2), image_heads=4
    )
    clip = CLIP(sizes, tokenizer)
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
