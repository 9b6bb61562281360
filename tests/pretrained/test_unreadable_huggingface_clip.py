"""Hugging Face folders that are no CLIP, are damaged, or have settings that are not supported."""

import json
from pathlib import Path

import pytest
import torch
from reference_clips import VOCABULARY, edited
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from dalle.checkpoint import CheckpointError
from dalle.models.clip.model import CLIP


def refused(folder: Path, **options) -> str:
    with pytest.raises(ValueError) as error:
        CLIP.from_huggingface(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_other_model_type_raises(folder):
    edited(folder, "config.json", model_type="siglip")
    assert "holds a model of type 'siglip', not 'clip'" in refused(folder)


def test_missing_and_damaged_files_raise(folder):
    assert "there is no folder nowhere" in refused(Path("nowhere"))
    weights, config = folder / "model.safetensors", folder / "config.json"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    assert "model.safetensors is truncated or damaged" in refused(folder)
    weights.unlink()
    assert "model.safetensors is missing" in refused(folder)
    config.write_text(config.read_text()[:-20])
    assert "config.json is not valid JSON" in refused(folder)
    config.write_text("[1]")
    assert "config.json should hold a JSON object but holds a list" in refused(folder)
    config.unlink()
    assert "config.json is missing" in refused(folder)


def test_unknown_tensor_names_and_shapes_raise(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)

    def spoilt(**changes) -> str:
        changed = {name.replace("__", "."): tensor for name, tensor in changes.items()}
        kept = {name: tensor for name, tensor in {**tensors, **changed}.items() if tensor is not None}
        save_file(kept, path)
        return refused(folder)

    assert "lacks the tensor text.projection.weight" in spoilt(text_projection__weight=None)
    sentence = spoilt(visual_projection__weight=torch.zeros(7, 64))
    assert (
        "model.safetensors does not fit the model: image.projection.weight is (7, 64) in the file, (24, 64)" in sentence
    )
    assert "holds the tensor decoder.weight, which the model does not have" in spoilt(decoder__weight=torch.zeros(1))
    name = "text_model__encoder__layers__1__self_attn__k_proj__weight"
    for tensor in (None, torch.zeros(3, 3)):
        assert "keys and values as text_model.encoder.layers.1.self_attn.q_proj.weight (64, 64)" in spoilt(
            **{name: tensor}
        )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_size": 30}, "image_size=30 must be a multiple of patch=8"),
        ({"image_size": [32, 48]}, "image_size=[32, 48]"),
        ({"num_channels": 1}, "num_channels=1; images must be square and have 3 channels"),
        ({"hidden_act": "relu"}, "unknown activation 'relu'; choose one of quick_gelu, gelu"),
        ({"num_attention_heads": 7}, "image_width=64 must be a multiple of image_heads=7"),
    ],
)
def test_unsupported_sizes_raise(folder, changes, sentence):
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    edited(folder, "config.json", vision_config={**vision, **changes})
    assert sentence in refused(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"do_center_crop": False}, "has do_center_crop=False, but only True is supported"),
        ({"rescale_factor": 1.0}, "has rescale_factor=1.0"),
        (
            {"size": {"height": 32, "width": 32}},
            "has size={'height': 32, 'width': 32}, but only {'shortest_edge': 32}",
        ),
        ({"crop_size": {"height": 30, "width": 32}}, "has crop_size={'height': 30, 'width': 32}"),
        ({"size": {"shortest_edge": 20}}, "shorter_side=20 must be at least image_size=32"),
        ({"resample": 9}, "has resample=9"),
        ({"image_mean": [0.5]}, "has image_mean=[0.5]"),
        ({"image_std": None}, "preprocessor_config.json has image_std=None"),
        ({"rescale_factor": None}, "has rescale_factor=None"),
        ({"resample": [3]}, "has resample=[3]"),
    ],
)
def test_unsupported_preprocessing_raises(folder, changes, sentence):
    ours = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    edited(folder, "preprocessor_config.json", **{**ours, **changes})
    assert sentence in refused(folder)


def test_entries_that_are_no_objects_raise(folder):
    edited(folder, "processor_config.json", image_processor=None)
    assert "processor_config.json has image_processor=None, which should be an object" in refused(folder)
    edited(folder, "config.json", text_config=[1])
    assert "config.json has text_config=[1], which should be an object" in refused(folder)


@pytest.mark.parametrize("wrong", [None, "four", [4], {}], ids=str)
@pytest.mark.parametrize("encoder", ["text_config", "vision_config"])
def test_numbers_of_a_wrong_type_raise(folder, encoder, wrong):
    config = json.loads((folder / "config.json").read_text())[encoder]
    for name in ("vocab_size", "hidden_size", "image_size", "num_hidden_layers", "layer_norm_eps", "eos_token_id"):
        if name in config:
            edited(folder, "config.json", **{encoder: {**config, name: wrong}})
            refused(folder)


def test_tokenizer_of_another_model_raises(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(other)
    sentence = refused(folder, tokenizer=other)
    assert f"has {VOCABULARY + 1} token ids, but the model's vocabulary is {VOCABULARY}" in sentence
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edited(folder, "config.json", text_config={**text, "eos_token_id": 7})
    assert f"has eos_token_id=7, but the tokenizer ends captions with {VOCABULARY - 1}" in refused(folder)


def test_errors_are_checkpoint_errors(folder):
    edited(folder, "config.json", model_type="bert")
    with pytest.raises(CheckpointError):
        CLIP.from_huggingface(folder)
