"""CLIP's inputs: captions become token ids, images of any size become squares."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny_clip import CAPTIONS, noise, pixels

from dalle.checkpoint import CheckpointError
from dalle.models.clip.model import CLIP
from dalle.tokenizer import CaptionTokenizer


def test_tokenizer_without_room_for_start_and_end_tokens_raises(clip_config, clip_tokenizer, clip, tmp_path):
    words = clip_tokenizer.vocabulary
    with pytest.raises(ValueError, match=f"{words} ids, but text_vocabulary={words + 1} has room for {words - 1}"):
        CLIP(replace(clip_config, text_vocabulary=words + 1), clip_tokenizer)
    clip.save(tmp_path)
    CaptionTokenizer.train([*CAPTIONS, "purple zigzags"] * 4, words + 1).save(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match=f"the tokenizer has {words + 1} ids"):
        CLIP.load(tmp_path)


def test_caption_is_between_start_and_end_tokens_and_padded_with_zeros(clip, clip_tokenizer):
    ids = clip.tokenize([CAPTIONS[0], ""])
    words = clip_tokenizer.encode(CAPTIONS[0])
    start, end = clip_tokenizer.vocabulary, clip_tokenizer.vocabulary + 1
    assert ids.dtype == torch.int64
    assert ids.tolist() == [
        [start, *words, end] + [0] * (30 - len(words)),
        [start, end] + [0] * 30,
    ]


def test_too_long_caption_raises_or_is_truncated(clip, clip_tokenizer):
    long = " ".join(CAPTIONS * 3)
    tokens = clip_tokenizer.encode(long)
    assert len(tokens) > 30
    with pytest.raises(ValueError, match=rf"the caption has {len(tokens)} tokens, but CLIP reads at most 30: 'a small"):
        clip.tokenize([CAPTIONS[1], long])
    (ids,) = clip.tokenize([long], truncate=True).tolist()
    assert ids == [clip.config.start_token, *tokens[:30], clip.config.end_token]


def test_caption_of_maximum_length_is_complete(clip_config, clip_tokenizer):
    tokens = clip_tokenizer.encode(CAPTIONS[0])
    (ids,) = CLIP(replace(clip_config, text_positions=len(tokens) + 2), clip_tokenizer).tokenize([CAPTIONS[0]]).tolist()
    assert ids[1:-1] == tokens
    with pytest.raises(ValueError, match="at most"):
        CLIP(replace(clip_config, text_positions=len(tokens) + 1), clip_tokenizer).tokenize([CAPTIONS[0]])


def test_captions_without_a_tokenizer_raise(clip_config):
    with pytest.raises(ValueError, match="built without a tokenizer; load one"):
        CLIP(clip_config).tokenize(CAPTIONS)


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


def test_resize_before_crop_removes_a_margin(clip_config, clip):
    wide = CLIP(replace(clip_config, shorter_side=20))
    image = noise(20, 20)
    assert wide.preprocess([image]).equal(clip.preprocess([image.crop((4, 4, 16, 16))]))


@pytest.mark.parametrize(
    ("rounding", "lefts"), [("down", [0, 0, 1, 1, 2, 2, 3, 3]), ("even", [0, 0, 1, 2, 2, 2, 3, 4])]
)
def test_half_pixel_crop_offset_is_rounded_as_configured(clip_config, clip, rounding, lefts):
    model = CLIP(replace(clip_config, crop_rounding=rounding))
    for margin, left in enumerate(lefts):
        image = noise(12 + margin, 12)
        assert model.preprocess([image]).equal(clip.preprocess([image.crop((left, 0, left + 12, 12))]))


def test_images_are_resized_and_normalised_as_configured(clip_config, clip):
    other = CLIP(replace(clip_config, resample="nearest", pixel_mean=(0.1, 0.2, 0.3), pixel_std=(0.5, 0.6, 0.7))).eval()
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
