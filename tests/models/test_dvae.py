"""Discrete VAE: agreement with the published architecture, codes, pixel mapping, and errors."""

from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from dalle.checkpoint import CheckpointError
from dalle.models.dvae.model import DiscreteVAE, DVAEConfig, codebook_use, map_pixels, mean_image, unmap_pixels
from dalle.models.dvae.relaxation import gumbel_softmax

TINY = DVAEConfig(vocabulary=11, width=8, groups=3, blocks_per_group=2, decoder_input=6, gain=0.7)


def build(config: DVAEConfig = TINY, seed: int = 0) -> DiscreteVAE:
    torch.manual_seed(seed)
    model = DiscreteVAE(config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # fresh ones are 0, and would hide what becomes of them
                parameter.normal_(std=0.3)
    return model.eval()


def pictures(batch: int = 2, height: int = 16, width: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, height, width, generator=generator, dtype=torch.float64)


# --- the published architecture --------------------------------------------------------------------------------


def published_shapes(half: str) -> dict[str, tuple[int, ...]]:
    """Return the paper's weights under our names, as in OpenAI's released code; h is a quarter of the outputs."""
    if half == "encoder":
        groups = [(256, 256), (256, 512), (512, 1024), (1024, 2048)]
        shapes: dict[str, tuple[int, ...]] = {"input": (256, 3, 7, 7), "output": (8192, 2048, 1, 1)}
        kernels = (3, 3, 3, 1)
    else:
        groups = [(128, 2048), (2048, 1024), (1024, 512), (512, 256)]
        shapes = {"input": (128, 8192, 1, 1), "output": (6, 256, 1, 1)}
        kernels = (1, 3, 3, 3)
    for group, (inputs, outputs) in enumerate(groups):
        for block, entering in enumerate((inputs, outputs)):
            h = outputs // 4
            name = f"groups.{group}.{block}"
            widths = [(h, entering), (h, h), (h, h), (outputs, h)]
            for part, sizes, k in zip(("first", "second", "third", "last"), widths, kernels, strict=True):
                shapes[f"{name}.{part}"] = (*sizes, k, k)
            if entering != outputs:
                shapes[f"{name}.identity"] = (outputs, entering, 1, 1)
    return shapes


@pytest.mark.parametrize(("half", "parameters", "tensors"), [("encoder", 53_786_240, 74), ("decoder", 43_829_766, 76)])
def test_default_weights_have_the_published_shapes(half, parameters, tensors):
    with torch.device("meta"):
        state = getattr(DiscreteVAE(DVAEConfig()), half).state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == parameters
    assert len(state) == tensors
    weights = {name.removesuffix(".weight"): tuple(w.shape) for name, w in state.items() if name.endswith(".weight")}
    assert weights == published_shapes(half)
    assert all(state[f"{name}.bias"].shape == shape[:1] for name, shape in weights.items())


def test_default_encodes_256_pixels_as_32_by_32_of_8192_codes():
    config = DVAEConfig()
    assert (config.vocabulary, config.downsample, config.branch_gain) == (8192, 8, 1 / 64)
    with torch.device("meta"):
        model = DiscreteVAE(config)
        assert model.logits(torch.empty(1, 3, 256, 256)).shape == (1, 8192, 32, 32)
        assert model.decode_codes(torch.empty(1, 8192, 32, 32)).shape == (1, 6, 256, 256)


def literal_block(block, x, gain):
    """Reference: Appendix A.1 literally, ReLU before every convolution, identity path plus gain times residual path."""
    h = x
    for convolution in (block.first, block.second, block.third, block.last):
        padding = convolution.weight.shape[-1] // 2
        h = F.conv2d(F.relu(h), convolution.weight, convolution.bias, padding=padding)
    return block.identity(x) + gain * h


def literal_encoder(model: DiscreteVAE, images: torch.Tensor, pool) -> torch.Tensor:
    x = model.encoder.input(0.8 * images + 0.1)
    for number, group in enumerate(model.encoder.groups):
        for block in group.children():
            x = literal_block(block, x, model.config.branch_gain)
        if number < model.config.groups - 1:
            x = pool(x, 2)
    return model.encoder.output(F.relu(x))


def literal_decoder(model: DiscreteVAE, codes: torch.Tensor) -> torch.Tensor:
    """Reference as published: each group except the last is upsampled before the next one."""
    x = model.decoder.input(codes)
    for number, group in enumerate(model.decoder.groups):
        for block in group.children():
            x = literal_block(block, x, model.config.branch_gain)
        if number < model.config.groups - 1:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return model.decoder.output(F.relu(x))


@pytest.mark.parametrize(("name", "pool"), [("max", F.max_pool2d), ("average", F.avg_pool2d)])
@torch.no_grad()
def test_encoder_matches_published_construction(name, pool):
    model = build(replace(TINY, pool=name))
    images = pictures()
    torch.testing.assert_close(model.logits(images), literal_encoder(model, images, pool))


@torch.no_grad()
def test_upsampling_after_1x1_convolutions_equals_upsampling_before():
    model = build()
    codes = gumbel_softmax(torch.randn(2, 11, 3, 5, generator=torch.Generator().manual_seed(1)), 1.0).double()
    torch.testing.assert_close(model.decode_codes(codes), literal_decoder(model, codes))


def test_gradients_match_with_folded_gain_and_late_upsampling():
    model = build()
    codes = F.softmax(torch.randn(1, 11, 2, 2, generator=torch.Generator().manual_seed(1)).double(), dim=1)
    towards = pictures(1, 8, 8).repeat(1, 2, 1, 1)
    parameters = list(model.decoder.parameters())
    ours = torch.autograd.grad((model.decode_codes(codes) * towards).sum(), parameters)
    literal = torch.autograd.grad((literal_decoder(model, codes) * towards).sum(), parameters)
    torch.testing.assert_close(ours, literal)


@torch.no_grad()
def test_inputs_are_not_modified():
    model = build()  # its ReLUs work in place
    images, codes = pictures(), F.softmax(torch.randn(2, 11, 4, 4).double(), dim=1)
    before = images.clone(), codes.clone()
    model.logits(images)
    model.decode_codes(codes)
    assert images.equal(before[0])
    assert codes.equal(before[1])


def test_initial_weights_preserve_the_scale_of_activations():
    torch.manual_seed(0)
    state = DiscreteVAE(DVAEConfig(vocabulary=64, width=64, groups=2)).state_dict()
    for name, tensor in state.items():
        if name.endswith("bias"):
            assert not tensor.any()
        else:
            fan_in = tensor[0].numel()
            assert tensor.std().item() == pytest.approx(fan_in**-0.5, rel=0.1), name


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
