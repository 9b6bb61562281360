"""OpenAI's dVAE, read from its own files: outputs equal the official code, and other files raise."""

import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dalle.checkpoint import CheckpointError
from dalle.models.dvae.model import DiscreteVAE, DVAEConfig
from dalle.pretrained.openai_dvae import convolution_mappings, read_openai_dvae

OFFICIAL = "OpenAI's own package is needed: pip install attrs && pip install --no-deps dall-e==0.1"
dall_e = pytest.importorskip("dall_e", reason=OFFICIAL)

SIZES = {"n_hid": 8, "vocab_size": 20, "n_blk_per_group": 2}
CONTAINERS = pytest.mark.parametrize("archive", [True, False], ids=["zip archive", "row of pickles"])


def official(seed=0, n_init=12, **changes):
    """Return the official encoder and decoder with random weights and biases."""
    torch.manual_seed(seed)
    sizes = {**SIZES, **changes}
    encoder, decoder = dall_e.Encoder(**sizes), dall_e.Decoder(n_init=n_init, **sizes)
    for module in (*encoder.modules(), *decoder.modules()):
        if isinstance(module, dall_e.utils.Conv2d):
            nn.init.normal_(module.b)
    return encoder, decoder


def save(folder, encoder, decoder, archive=True):
    """Save whole modules by torch.save, like the published files."""
    paths = folder / "encoder.pkl", folder / "decoder.pkl"
    for module, path in zip((encoder, decoder), paths, strict=True):
        torch.save(module, path, _use_new_zipfile_serialization=archive)
    return paths


def pictures():
    return torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(1))


def official_tokens(encoder, images):
    return encoder(dall_e.map_pixels(images)).argmax(dim=1)


def official_pictures(decoder, tokens):
    codes = F.one_hot(tokens, decoder.vocab_size).permute(0, 3, 1, 2).float()
    return dall_e.unmap_pixels(decoder(codes)[:, :3].sigmoid())


# --- parity ----------------------------------------------------------------------------------------------------


@torch.no_grad()
@CONTAINERS
@pytest.mark.parametrize("blocks", [1, 2])
def test_logits_tokens_and_images_match_official_code(tmp_path, archive, blocks):
    encoder, decoder = official(n_blk_per_group=blocks)
    model = DiscreteVAE.from_openai(*save(tmp_path, encoder, decoder, archive))
    assert not model.training
    images = pictures()
    torch.testing.assert_close(model.logits(images), encoder(dall_e.map_pixels(images)), rtol=0, atol=1e-5)
    tokens = official_tokens(encoder, images)
    assert model.encode(images).equal(tokens)
    torch.testing.assert_close(model.decode(tokens), official_pictures(decoder, tokens), rtol=0, atol=1e-5)


@torch.no_grad()
def test_residual_gain_is_the_recorded_one(tmp_path):
    encoder, decoder = official()
    for module in (*encoder.modules(), *decoder.modules()):
        if hasattr(module, "post_gain"):
            module.post_gain = 0.5  # 1/64 by their rule
    model = DiscreteVAE.from_openai(*save(tmp_path, encoder, decoder))
    images = pictures()
    torch.testing.assert_close(model.logits(images), encoder(dall_e.map_pixels(images)), rtol=1e-5, atol=1e-5)
    tokens = official_tokens(encoder, images)
    torch.testing.assert_close(model.decode(tokens), official_pictures(decoder, tokens), rtol=0, atol=1e-5)


@torch.no_grad()
def test_state_dicts_are_read(tmp_path):
    encoder, decoder = official()
    model = DiscreteVAE.from_openai(*save(tmp_path, encoder.state_dict(), decoder.state_dict()))
    images = pictures()
    torch.testing.assert_close(model.logits(images), encoder(dall_e.map_pixels(images)), rtol=0, atol=1e-5)


@torch.no_grad()
def test_official_package_is_not_needed(tmp_path, monkeypatch):
    encoder, decoder = official()
    paths = save(tmp_path, encoder, decoder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "dall_e"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError):
        torch.load(paths[0], weights_only=False)
    model = DiscreteVAE.from_openai(*paths)
    assert model.encoder.input.weight.equal(encoder.blocks.input.w)


def test_all_150_published_tensors_have_official_names_and_shapes():
    sizes = {"width": 256, "vocabulary": 8192, "decoder_input": 128, "groups": 4, "blocks_per_group": 2}
    meta = torch.device("meta")
    with meta:
        ours = DiscreteVAE(DVAEConfig()).state_dict()
    theirs = {"encoder": dall_e.Encoder(device=meta), "decoder": dall_e.Decoder(device=meta)}
    named = 0
    for half, module in theirs.items():
        expected = {}
        for convolution in convolution_mappings(half, sizes):
            expected |= {f"{convolution.source}.w": convolution.shape, f"{convolution.source}.b": convolution.shape[:1]}
            assert tuple(ours.pop(f"{convolution.target}.weight").shape) == convolution.shape
            assert tuple(ours.pop(f"{convolution.target}.bias").shape) == convolution.shape[:1]
        assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == expected
        named += len(expected)
    assert ours == {}
    assert named == 150


# --- what it says of itself ------------------------------------------------------------------------------------


def test_sizes_match_official_modules_and_origin_is_recorded(tmp_path):
    weights = read_openai_dvae(*save(tmp_path, *official(n_blk_per_group=3)))
    expected = DVAEConfig(vocabulary=20, width=8, blocks_per_group=3, decoder_input=12)
    assert replace(DVAEConfig(**weights.sizes), gain=None) == expected
    assert DVAEConfig(**weights.sizes).branch_gain == pytest.approx(expected.branch_gain)
    assert weights.meta["imported"] == "openai-dvae"
    assert (weights.meta["likelihood"], weights.meta["temperature"]) == ({"kind": "logit_laplace"}, 1 / 16)
    assert weights.meta["files"]["decoder"]["file"] == "decoder.pkl"


def test_origin_depends_on_file_contents(tmp_path):
    digests = set()
    for seed in (0, 0, 1):
        folder = tmp_path / f"{seed}"
        folder.mkdir(exist_ok=True)
        digests.add(read_openai_dvae(*save(folder, *official(seed))).meta["files"]["encoder"]["sha256"])
    assert len(digests) == 2
    assert all(len(digest) == 64 for digest in digests)


# --- bad input -------------------------------------------------------------------------------------------------


def test_missing_file_raises_with_its_url(tmp_path):
    encoder, _ = save(tmp_path, *official())
    with pytest.raises(CheckpointError, match="no file .*x.pkl; .* at https://cdn.openai.com/dall-e/decoder.pkl"):
        DiscreteVAE.from_openai(encoder, tmp_path / "x.pkl")


def test_swapped_files_raise(tmp_path):
    encoder, decoder = save(tmp_path, *official())
    with pytest.raises(CheckpointError, match="decoder.pkl is OpenAI's decoder, not the encoder: swap encoder= and"):
        DiscreteVAE.from_openai(decoder, encoder)
    with pytest.raises(CheckpointError, match="encoder.pkl is OpenAI's encoder, not the decoder: swap encoder= and"):
        DiscreteVAE.from_openai(encoder, encoder)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (nn.Sequential(nn.ReLU()), "blocks.input.w and blocks.output.conv.w have the shapes missing and missing"),
        ({"blocks.input.w": torch.zeros(5)}, r".* have the shapes \(5,\) and missing, not \(width, 3, 7, 7\) and"),
    ],
)
def test_other_files_raise_with_shapes(tmp_path, other, sentence):
    paths = save(tmp_path, other, official()[1])
    with pytest.raises(CheckpointError, match=f"encoder.pkl is not the encoder of OpenAI's dVAE: {sentence}"):
        DiscreteVAE.from_openai(*paths)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"vocab_size": 24}, "vocabulary is 24 in the encoder and 20 in the decoder"),
        ({"n_hid": 16}, "width is 16 in the encoder and 8 in the decoder"),
        ({"n_blk_per_group": 1}, "blocks_per_group is 1 in the encoder and 2 in the decoder"),
    ],
)
def test_encoder_and_decoder_of_different_models_raise(tmp_path, changes, sentence):
    paths = save(tmp_path, official(**changes)[0], official()[1])
    with pytest.raises(CheckpointError, match=f"encoder.pkl and .*decoder.pkl are not of one model: {sentence}"):
        DiscreteVAE.from_openai(*paths)


def test_encoder_and_decoder_of_different_gains_raise(tmp_path):
    encoder, decoder = official()
    decoder.blocks.group_2.block_1.post_gain = 0.25
    with pytest.raises(
        CheckpointError,
        match="not of one model: residual branches have the gains 0.015625, 0.25",
    ):
        DiscreteVAE.from_openai(*save(tmp_path, encoder, decoder))


NAME = "blocks.group_2.block_1.res_path.conv_1.w"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state.pop(NAME), rf"{NAME} is missing; expected \(4, 8, 3, 3\)"),
        (
            lambda state: state.update({NAME: torch.zeros(4, 7, 3, 3)}),
            rf"{NAME} is \(4, 7, 3, 3\); expected \(4, 8, 3, 3\)",
        ),
        (lambda state: state.update(extra=torch.zeros(1)), "holds the tensor extra, which OpenAI's dVAE does not have"),
    ],
)
def test_missing_mismatched_or_unexpected_tensor_raises(tmp_path, change, sentence):
    encoder, decoder = (module.state_dict() for module in official())
    change(encoder)
    with pytest.raises(CheckpointError, match=f"encoder.pkl.*{sentence}"):
        DiscreteVAE.from_openai(*save(tmp_path, encoder, decoder))


def test_two_tensors_are_not_an_encoder(tmp_path):
    ends = {"blocks.input.w": torch.zeros(8, 3, 7, 7), "blocks.output.conv.w": torch.zeros(20, 8, 1, 1)}
    paths = save(tmp_path, ends, official()[1])
    with pytest.raises(CheckpointError, match="groups is 1 in the encoder and 4 in the decoder"):
        DiscreteVAE.from_openai(*paths)


def test_unsupported_layers_raise(tmp_path):
    encoder, decoder = official()
    encoder.blocks.group_1.pool = nn.AvgPool2d(2)
    with pytest.raises(CheckpointError, match="refers to torch.nn.modules.pooling.AvgPool2d"):
        DiscreteVAE.from_openai(*save(tmp_path, encoder, decoder))
