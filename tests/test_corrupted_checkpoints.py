"""Corrupted checkpoints raise CheckpointError with a sentence: every field of each model, with values of all types."""

import json
import shutil
from dataclasses import fields, replace

import pytest
import torch
from PIL import Image

from dalle import checkpoint
from dalle.checkpoint import CheckpointError
from dalle.models.clip.model import CLIP, CLIPConfig
from dalle.models.decoder.model import DecoderConfig, DiffusionDecoder
from dalle.models.dvae.model import DiscreteVAE, DVAEConfig
from dalle.models.transformer.model import Transformer, TransformerConfig
from dalle.sampling.pipeline import DALLE
from dalle.weights_files import WEIGHTS, read_weights, write_weights

MODELS = {"dvae": DiscreteVAE, "transformer": Transformer, "clip": CLIP, "decoder": DiffusionDecoder}
SCHEMAS = {"dvae": DVAEConfig, "transformer": TransformerConfig, "clip": CLIPConfig, "decoder": DecoderConfig}
DECODER = DecoderConfig(
    width=8, levels=1, blocks=1, patch=2, image_vocabulary=13, code_channels=8, code_side=2, grid=4
)  # fits the dVAE of the fixture `checkpoints`
CORRUPTED_VALUES = [
    *(None, True, False, "", "x", [], [[]], {}, {"a": 1}, [1, 2], ["dense"], ["row", 3]),
    *(-1, 0, 1, 2, 3, 7, 10**9, 10**18, 10**400, 0.5, -1.5, 1e308, float("nan"), float("inf")),
]
FIELDS = [(kind, field.name) for kind, schema in SCHEMAS.items() for field in fields(schema)]
META = [*checkpoint.META, "anything"]


@pytest.fixture(scope="module")
def intact(checkpoints, tmp_path_factory):
    """Folder with a dvae/, transformer/, clip/ and decoder/ that fit each other."""
    folder = shutil.copytree(checkpoints, tmp_path_factory.mktemp("intact"), dirs_exist_ok=True)
    trained_on = {"path": "../dvae", "digest": checkpoint.digest(folder / "dvae")}
    DiffusionDecoder(DECODER).save(folder / "decoder", {"dvae": trained_on})
    return folder


@pytest.fixture
def corrupted(intact, tmp_path):
    """A copy of the checkpoints, and a function that changes a value in a config.json."""
    folder = tmp_path / "copy"
    shutil.copytree(intact, folder)

    def change(kind: str, part: str, name: str, value) -> None:
        path = folder / kind / checkpoint.CONFIG
        content = json.loads((intact / kind / checkpoint.CONFIG).read_text())
        content[part][name] = value
        path.write_text(json.dumps(content))

    return folder, change


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_a_corrupted_model_field_raises_a_checkpoint_error_or_is_harmless(corrupted, kind, name):
    folder, change = corrupted
    refused = 0
    for value in CORRUPTED_VALUES:
        change(kind, "model", name, value)
        try:
            model = MODELS[kind].load(folder / kind)
        except CheckpointError as error:
            refused += 1
            assert str(folder) in str(error)
            assert len(str(error)) < 500
            continue
        use(kind, model)
    assert refused >= len(CORRUPTED_VALUES) / 2


@torch.no_grad()
def use(kind: str, model) -> None:
    """Run a loaded model once: it must work."""
    if kind == "dvae":
        assert model.decode(model.encode(torch.rand(1, 3, 8, 8))).shape == (1, 3, 8, 8)
    elif kind == "clip":
        assert model.score([Image.new("RGB", (9, 9))], ["a red circle"]).shape == (1, 1)
    elif kind == "decoder":
        codes = torch.rand(1, 8, 4, 4)
        assert model(torch.rand(1, 3, 8, 8), torch.rand(1), torch.rand(1, 3, 8, 8), codes).shape == (1, 3, 8, 8)
    else:
        captions = model.sequence.pad_captions([[1, 2]])
        assert model(captions, torch.zeros(1, 16, dtype=torch.int64)).image.shape == (1, 16, 13)


@pytest.mark.parametrize("name", META)
def test_corrupted_metadata_raises_an_error_or_is_harmless(corrupted, name):
    folder, change = corrupted
    for value in CORRUPTED_VALUES:
        change("transformer", "meta", name, value)
        try:
            DALLE.load(folder).generate("a red circle", candidates=2, keep=1)
        except ValueError as error:  # also what a guidance without caption dropout is answered with
            assert len(str(error)) < 500


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "content", ["[]", "3", "null", '{"format": 1}', "{", '{"format": 1, "kind": "KIND", "model": 3}']
)
def test_an_invalid_config_json_raises_an_error(corrupted, kind, content):
    folder, _ = corrupted
    (folder / kind / checkpoint.CONFIG).write_text(content.replace("KIND", kind))
    with pytest.raises(CheckpointError):
        MODELS[kind].load(folder / kind)


@pytest.mark.parametrize("kind", MODELS)
def test_weights_of_another_model_raise_an_error(corrupted, kind):
    folder, _ = corrupted
    other = next(model for model in MODELS if model != kind)
    shutil.copy(folder / other / WEIGHTS, folder / kind / WEIGHTS)
    with pytest.raises(CheckpointError, match="holds no|tensor"):
        MODELS[kind].load(folder / kind)


def test_sizes_are_checked_before_allocation(corrupted, monkeypatch):
    """Sizes are compared with the header first: a grid of 30,000 would want a mask of 10^18 cells."""
    folder, change = corrupted
    monkeypatch.setattr(Transformer, "__init__", lambda *_: pytest.fail("a model was built"))
    for name, value in (("grid", 30_000), ("width", 10**9), ("depth", 10**7), ("text_vocabulary", 10**12)):
        change("transformer", "model", name, value)
        with pytest.raises(CheckpointError, match=rf"{name}={value}, but model.safetensors has"):
            Transformer.load(folder / "transformer")


def test_a_small_file_cannot_ask_for_large_attention_masks(tmp_path):
    sizes = {"text_positions": 4, "text_vocabulary": 4, "image_vocabulary": 4, "width": 2, "depth": 1, "heads": 1}
    model = Transformer(TransformerConfig(**sizes, grid=2, patterns=["dense"], attention="dense"))
    weights = model.state_dict()
    for name in ("embed.row.weight", "embed.column.weight"):
        weights[name] = torch.zeros(500, 2)  # masks of 500**4 bytes
    checkpoint.save_model(tmp_path, "transformer", model, replace(model.config, grid=500))
    write_weights(tmp_path, weights)
    with pytest.raises(CheckpointError, match="grid=500 make 250,004 positions; use at most 20,000"):
        Transformer.load(tmp_path)


def test_a_small_file_cannot_ask_for_a_large_decoder(corrupted):
    folder, change = corrupted
    change("decoder", "model", "patch", 1024)
    content = json.loads((folder / "decoder" / checkpoint.CONFIG).read_text())
    content["model"]["code_side"] = 1024
    (folder / "decoder" / checkpoint.CONFIG).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"has patch=1024, but model.safetensors has patch=2"):
        DiffusionDecoder.load(folder / "decoder")


@pytest.mark.parametrize(
    ("name", "shape"), [("text.embedding.weight", (16,)), ("image.positions", (0, 8)), ("text.embedding.weight", ())]
)
def test_tensors_without_the_dimensions_of_a_model_raise_an_error(corrupted, name, shape):
    folder, _ = corrupted
    write_weights(folder / "clip", read_weights(folder / "clip") | {name: torch.zeros(shape)})
    with pytest.raises(CheckpointError, match="holds no clip: a tensor has the wrong shape"):
        CLIP.load(folder / "clip")


def test_a_resnet_is_saved_and_loaded(tmp_path, checkpoints):
    sizes = CLIP.load(checkpoints / "clip").config
    model = CLIP(
        replace(sizes, image_encoder="resnet", image_size=64, image_width=4, image_blocks=(1, 2, 1, 1), image_heads=2),
        CLIP.load(checkpoints / "clip").tokenizer,
    ).eval()
    model.save(tmp_path)
    loaded = CLIP.load(tmp_path)
    assert loaded.config == model.config
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode_image(pixels), model.encode_image(pixels))
