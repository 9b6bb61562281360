"""Discrete VAE: codes, pixel mapping, checkpoints and errors."""

from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from tiny_dvae import TINY, build, pictures

from dalle.checkpoint import CheckpointError
from dalle.models.dvae.model import DiscreteVAE, DVAEConfig, codebook_use, map_pixels, mean_image, unmap_pixels

# --- codes -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_images_of_every_divisible_shape_are_encoded_and_decoded():
    model = build()
    images = pictures(3, 8, 20)
    assert model.logits(images).shape == (3, 11, 2, 5)
    tokens = model.encode(images)
    assert tokens.shape == (3, 2, 5)
    assert tokens.dtype == torch.int64
    decoded = model.decode(tokens)
    assert decoded.shape == (3, 3, 8, 20)
    assert decoded.min() >= 0
    assert decoded.max() <= 1
    likelihood_params, logits = model.float()(images.float(), 1.0, torch.Generator().manual_seed(0))
    assert likelihood_params.shape == (3, 6, 8, 20)
    assert logits.shape == (3, 11, 2, 5)


@torch.no_grad()
def test_code_is_the_argmax_at_its_position():
    model = build()
    images = pictures(4)
    assert model.encode(images).equal(model.logits(images).softmax(dim=1).argmax(dim=1))
    assert model.encode(images).unique().numel() > 1


@torch.no_grad()
def test_decoding_an_index_looks_up_its_embedding():
    model = build()
    tokens = torch.randint(11, (2, 3, 4), generator=torch.Generator().manual_seed(2))
    state = model.decoder.input.state_dict()
    table = state["weight"][:, :, 0, 0]  # (decoder_input, v)
    looked_up = table[:, tokens].transpose(0, 1) + state["bias"][:, None, None]
    hard = F.one_hot(tokens, 11).movedim(-1, 1).double()
    torch.testing.assert_close(model.decoder.input(hard), looked_up)
    likelihood_params = model.decode_codes(hard)
    assert model.decode(tokens).equal(mean_image(likelihood_params))
    torch.testing.assert_close(model.decode(tokens), ((likelihood_params[:, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1))


@torch.no_grad()
def test_decoded_scale_does_not_change_the_image():
    model = build()
    tokens = torch.arange(11).reshape(1, 1, 11)
    before = model.decode(tokens)
    model.decoder.output.weight[3:] += 1
    model.decoder.output.state_dict()["bias"][3:] -= 1
    assert model.decode(tokens).equal(before)


def test_mapped_pixels_are_between_0_1_and_0_9_and_round_trip():
    ends = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(map_pixels(ends), torch.tensor([0.1, 0.5, 0.9]))
    images = pictures()
    torch.testing.assert_close(unmap_pixels(map_pixels(images)), images)
    outside = torch.tensor([0.0, 0.05, 0.95, 1.0])
    assert unmap_pixels(outside).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), r"floats in \[0, 1\], not torch.uint8; divide 8-bit pixels by"),
        (torch.zeros(3, 16, 16), r"must be \(b, 3, height, width\), not \(3, 16, 16\)"),
        (torch.zeros(1, 4, 16, 16), r"must be \(b, 3, height, width\), not \(1, 4, 16, 16\)"),
        (torch.zeros(1, 3, 16, 18), r"images of 18x16 pixels do not divide into codes of 4x4 pixels; crop or resize"),
        (torch.zeros(1, 3, 10, 16), r"images of 16x10 pixels do not divide into codes of 4x4 pixels; crop or resize"),
    ],
)
def test_invalid_images_raise(images, sentence):
    with pytest.raises(ValueError, match=sentence):
        build().encode(images)


@pytest.mark.parametrize(("token", "span"), [(11, "0 to 11"), (-1, "-1 to 0")])
def test_indices_outside_the_codebook_raise(token, span):
    tokens = torch.zeros(1, 2, 2, dtype=torch.int64)
    tokens[0, 1, 1] = token
    with pytest.raises(ValueError, match=f"tokens span {span}, but the codebook has indices 0 to 10"):
        build().decode(tokens)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"pool": "min"}, "pool='min' is unknown; choose 'max' or 'average'"),
        ({"width": 10}, "width=10 must be a multiple of 4"),
        ({"bottleneck_kernel": 2}, "bottleneck_kernel=2 must be odd"),
        ({"vocabulary": 1}, "vocabulary=1 must be at least 2"),
        ({"gain": 0.0}, r"gain=0\.0 must be a finite number above 0"),
        ({"gain": float("nan")}, "gain=nan must be a finite number above 0"),
    ],
)
def test_invalid_sizes_raise(sizes, sentence):
    with pytest.raises(ValueError, match=sentence):
        DVAEConfig(**sizes)


@torch.no_grad()
@pytest.mark.parametrize("bottleneck_kernel", [1, 3])
def test_decoding_tokens_equals_decoding_one_hot_codes(bottleneck_kernel):
    torch.manual_seed(0)
    model = DiscreteVAE(replace(TINY, bottleneck_kernel=bottleneck_kernel))
    model.decoder.input.bias.normal_()
    tokens = torch.randint(model.vocabulary, (2, 3, 4), generator=torch.Generator().manual_seed(1))
    codes = F.one_hot(tokens, model.vocabulary).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(model.decode(tokens), mean_image(model.decode_codes(codes)))


@torch.no_grad()
@pytest.mark.parametrize("bottleneck_kernel", [1, 3])
def test_tokens_of_any_integers_are_decoded_and_floats_refused(bottleneck_kernel):
    model = DiscreteVAE(replace(TINY, bottleneck_kernel=bottleneck_kernel))
    tokens = torch.randint(model.vocabulary, (2, 3, 4), generator=torch.Generator().manual_seed(1))
    expected = model.decode(tokens)
    for dtype in (torch.uint8, torch.uint16, torch.int32):
        assert model.decode(tokens.to(dtype)).equal(expected)
    with pytest.raises(ValueError, match="tokens are indices of the codebook as integers, not torch.float32"):
        model.decode(tokens.float())


@torch.no_grad()
def test_empty_batches_are_encoded_and_decoded():
    model = DiscreteVAE(TINY)
    tokens = model.encode(torch.zeros(0, 3, 16, 12))
    assert tokens.shape == (0, 4, 3)
    assert model.decode(tokens).shape == (0, 3, 16, 12)


def test_inference_mode_tokens_are_decoded_with_gradients():
    model = DiscreteVAE(TINY)
    with torch.inference_mode():
        tokens = model.encode(torch.rand(1, 3, 8, 8))
    assert model.decode(tokens).requires_grad


@torch.no_grad()
def test_tokens_are_decoded_without_one_hot_codes(monkeypatch):
    monkeypatch.setattr(F, "one_hot", None)  # 4.3 GB for 64 pictures of the published size
    model = DiscreteVAE(TINY)
    assert model.decode(torch.zeros(1, 2, 2, dtype=torch.int64)).shape == (1, 3, 8, 8)


def test_wider_bottleneck_keeps_the_grid():
    model = build(replace(TINY, bottleneck_kernel=3))
    assert model.encoder.output.weight.shape[-1] == model.decoder.input.weight.shape[-1] == 3
    assert model.encode(pictures()).shape == (2, 4, 4)
    assert model.decode(model.encode(pictures())).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("counts", "used", "perplexity"),
    [([5, 5, 5, 5], 4, 4.0), ([9, 0, 0, 0], 1, 1.0), ([3, 1, 0, 0], 2, 4 / 27**0.25), ([7, 0, 7, 0], 2, 2.0)],
)
def test_perplexity_of_uniformly_used_codes_is_their_number(counts, used, perplexity):
    assert codebook_use(torch.tensor(counts)) == (used, pytest.approx(perplexity))


# --- checkpoints -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_saved_model_gives_bitwise_equal_outputs(tmp_path):
    model = build().float()
    model.save(tmp_path, meta={"step": 3})
    loaded = DiscreteVAE.load(tmp_path)
    assert asdict(loaded.config) == asdict(model.config)
    assert not loaded.training
    images = pictures().float()
    assert loaded.logits(images).equal(model.logits(images))
    tokens = model.encode(images)
    assert loaded.decode(tokens).equal(model.decode(tokens))


def test_missing_checkpoint_raises(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        DiscreteVAE.load(tmp_path / "nowhere")
