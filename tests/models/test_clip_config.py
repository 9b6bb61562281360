"""Sizes and options of CLIP that are refused."""

from math import inf, nan

import pytest

from dalle.models.clip.model import CLIPConfig


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
