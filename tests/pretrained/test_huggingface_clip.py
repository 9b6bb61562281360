"""Hugging Face CLIP checkpoints: preprocessing, tokens and scores match transformers."""

import json

import pytest
import torch
from reference_clips import CAPTIONS, MERGES, VOCABULARY, edited, huggingface_model, noise, saved, vocabulary
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dalle.models.clip.model import CLIP

CLOSE = {"atol": 1e-4, "rtol": 0}
SIZES = [(32, 32), (64, 48), (37, 90), (33, 35), (20, 71), (9, 5)]


@pytest.fixture(autouse=True)
def same_draws() -> None:
    torch.manual_seed(0)


@torch.no_grad()
def assert_parity(clip: CLIP, reference: CLIPModel) -> None:
    """Compare embeddings and similarities of random images and captions."""
    pixels = torch.rand(3, 3, clip.config.image_size, clip.config.image_size)
    ids = clip.tokenize(CAPTIONS)
    theirs = reference(input_ids=ids, pixel_values=(pixels - clip.pixel_mean) / clip.pixel_std)
    pictures, captions, scale = clip(pixels, ids)
    torch.testing.assert_close(pictures, theirs.image_embeds, **CLOSE)
    torch.testing.assert_close(captions, theirs.text_embeds, **CLOSE)
    torch.testing.assert_close(scale * pictures @ captions.T, theirs.logits_per_image, **CLOSE)
    assert (pictures[0] - pictures[1]).abs().max() > 0.01
    assert (captions[0] - captions[1]).abs().max() > 0.01


# --- the same numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "vision", "projection"),
    [
        ({}, {}, 24),
        ({"hidden_act": "gelu", "layer_norm_eps": 0.1}, {"hidden_size": 96, "num_attention_heads": 3}, 40),
        ({"intermediate_size": 100, "num_hidden_layers": 3}, {"hidden_act": "gelu", "layer_norm_eps": 0.03}, 24),
        ({"num_attention_heads": 4}, {"image_size": 48, "patch_size": 16, "intermediate_size": 72}, 24),
    ],
)
def test_embeddings_and_similarities_match_transformers(text, vision, projection, tmp_path):
    reference = huggingface_model(text, vision, projection)
    assert_parity(CLIP.from_huggingface(saved(reference, tmp_path)), reference)


def test_half_precision_weights_are_read_as_float32(published_clip, folder):
    path = folder / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    clip = CLIP.from_huggingface(folder)
    assert {parameter.dtype for parameter in clip.parameters()} == {torch.float32}
    assert_parity(clip, CLIPModel.from_pretrained(folder, dtype=torch.float32).eval())


def test_scores_match_transformers(published_clip, published_folder):
    clip = CLIP.from_huggingface(published_folder)
    images = [noise(*size, seed) for seed, size in enumerate(SIZES)]
    ids = CLIPTokenizer.from_pretrained(published_folder)(CAPTIONS, padding=True, return_tensors="pt").input_ids
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    with torch.no_grad():
        theirs = published_clip(input_ids=ids, pixel_values=processor(images, return_tensors="pt").pixel_values)
    expected = theirs.logits_per_image / published_clip.logit_scale.exp()
    torch.testing.assert_close(clip.score(images, CAPTIONS), expected, **CLOSE)


def test_logit_scale_above_100_is_kept(folder):
    path = folder / "model.safetensors"
    save_file({**load_file(path), "logit_scale": torch.tensor(4.6052)}, path)
    clip = CLIP.from_huggingface(folder)
    assert clip.scale.item() == pytest.approx(100.003, abs=1e-3)
    assert clip.scale.item() > 100.002


# --- where captions end ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [2, VOCABULARY - 1, 7], ids=["old configs", "the end token", "a token of its own"])
@torch.no_grad()
def test_text_feature_position_matches_transformers(end, tmp_path):
    reference = huggingface_model({"eos_token_id": end})
    reference.save_pretrained(tmp_path)
    clip = CLIP.from_huggingface(tmp_path)
    ids = torch.randint(VOCABULARY, (8, 40), generator=torch.Generator().manual_seed(0))
    ids[torch.arange(8), torch.arange(3, 11)] = 7
    theirs = torch.nn.functional.normalize(reference.get_text_features(ids).pooler_output, dim=-1)
    torch.testing.assert_close(clip.encode_text(ids), theirs, **CLOSE)


def test_added_tokens_do_not_move_the_end_token(published_clip, folder):
    """The config's end token is used if the vocabulary has larger ids."""
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    larger = huggingface_model({"vocab_size": VOCABULARY + 1})
    larger.save_pretrained(folder)
    clip = CLIP.from_huggingface(folder)
    ids = clip.tokenize(["a <new> cat"])
    assert ids[0].tolist()[:6] == [*tokenizer("a <new> cat").input_ids, 0]
    assert_parity(clip, larger)


# --- how pictures are prepared ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.2, 0.1]},
        {"resample": 2, "size": {"shortest_edge": 40}},
    ],
    ids=["published", "other statistics", "bilinear and a wider margin"],
)
@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_preprocessing_matches_transformers(folder, changes, file):
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, **changes}
    processor = CLIPImageProcessorPil(**settings)
    if file == "preprocessor_config.json":
        processor.save_pretrained(folder)
    else:
        edited(folder, file, image_processor=processor.to_dict())
    clip = CLIP.from_huggingface(folder)
    images = [noise(*size, seed) for seed, size in enumerate(SIZES)]
    images += [noise(40, 50).convert("L"), noise(40, 50).convert("RGBA")]
    expected = processor(images, return_tensors="pt").pixel_values
    torch.testing.assert_close(
        (clip.preprocess(images) - clip.pixel_mean) / clip.pixel_std, expected, atol=1e-5, rtol=0
    )


def test_old_format_of_sizes_is_read(folder):
    edited(folder, "preprocessor_config.json", size=40, crop_size=32, resample=3, feature_extractor_type="CLIP")
    config = CLIP.from_huggingface(folder).config
    assert (config.shorter_side, config.image_size, config.resample) == (40, 32, "bicubic")


def test_duplicate_configs_have_the_precedence_of_transformers(published_clip, folder):
    config = json.loads((folder / "config.json").read_text())
    wrong = {**config["text_config"], "num_attention_heads": 2}
    edited(folder, "config.json", text_config=wrong, text_config_dict=config["text_config"], vision_config_dict=None)
    assert_parity(CLIP.from_huggingface(folder), published_clip)


# --- captions --------------------------------------------------------------------------------------------------


def test_both_tokenizer_formats_are_read(published_folder, folder):
    expected = CLIP.from_huggingface(published_folder).tokenize(CAPTIONS)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocabulary()))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in MERGES)]))
    assert CLIP.from_huggingface(folder).tokenize(CAPTIONS).equal(expected)
    (folder / "merges.txt").unlink()
    with pytest.raises(ValueError, match=r"merges\.txt, which the tokenizer needs"):
        CLIP.from_huggingface(folder)
    assert CLIP.from_huggingface(folder, tokenizer=published_folder).tokenize(CAPTIONS).equal(expected)


def test_without_a_tokenizer_only_images_are_encoded(published_clip, folder):
    (folder / "tokenizer.json").unlink()
    clip = CLIP.from_huggingface(folder)
    assert clip.encode_image(torch.rand(1, 3, 32, 32)).shape == (1, 24)
    with pytest.raises(ValueError, match="built without a tokenizer"):
        clip.score([noise(8, 8)], ["a cat"])


# --- checkpoints -----------------------------------------------------------------------------------------------


def test_saved_checkpoint_has_the_same_scores(folder, tmp_path_factory):
    CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    edited(folder, "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3])
    clip, out = CLIP.from_huggingface(folder), tmp_path_factory.mktemp("checkpoint")
    clip.save(out)
    loaded = CLIP.load(out)
    assert loaded.config == clip.config
    images = [noise(*size, seed) for seed, size in enumerate(SIZES)]
    captions = [*CAPTIONS, "red &amp; red"]
    assert loaded.score(images, captions).equal(clip.score(images, captions))
    assert not loaded.score(images, captions[-1:]).equal(loaded.score(images, ["red & red"]))
