"""The relaxation fused with the decoder's first layer equals the two steps by themselves, in less memory."""

import copy

import pytest
import torch
import torch.nn.functional as F

from dalle.models.dvae import gumbel_embedding as module
from dalle.models.dvae.convolutions import SameConv2d
from dalle.models.dvae.gumbel_embedding import gumbel_embedding, is_worthwhile
from dalle.models.dvae.model import DiscreteVAE, DVAEConfig

CODES, SIDE = 50, 6


@pytest.fixture(params=[1, 700, 1 << 19])
def chunks(request, monkeypatch):
    """One position at once, some positions with a shorter last chunk, and all positions."""
    monkeypatch.setattr(module, "CHUNK", request.param)


def case(dtype=torch.float32):
    logits = 3 * torch.randn(2, CODES, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    layer = SameConv2d(CODES, 8, 1)
    torch.nn.init.normal_(layer.bias)
    return logits.to(dtype).to(memory_format=torch.channels_last).requires_grad_(), layer


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def in_two_steps(logits, layer, temperature):
    """Relax with the same random numbers, then embed."""
    uniform = torch.rand(2, SIDE, SIDE, CODES, generator=generator()).movedim(3, 1)
    return layer(F.softmax((logits.float() - torch.log(-torch.log(uniform))) / temperature, dim=1))


def gradients(embedded, logits, layer):
    weights = torch.randn(embedded.shape, generator=generator(2))
    return torch.autograd.grad((embedded * weights).sum(), [logits, layer.weight, layer.bias])


@pytest.mark.parametrize("temperature", [1.0, 1 / 16])
def test_embeddings_and_gradients_equal_those_of_two_steps(chunks, temperature):
    logits, layer = case()
    expected = in_two_steps(logits, layer, temperature)
    embedded = gumbel_embedding(logits, layer, temperature, generator())
    torch.testing.assert_close(embedded, expected, rtol=1e-4, atol=1e-5)
    pairs = zip(gradients(embedded, logits, layer), gradients(expected, logits, layer), strict=True)
    for actual, reference in pairs:
        torch.testing.assert_close(actual, reference, rtol=1e-3, atol=1e-4)


def test_half_precision_logits_under_autocast_are_embedded_in_float32(chunks):
    logits, layer = case(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        embedded = gumbel_embedding(logits, layer, 0.5, generator())
    assert embedded.dtype == torch.float32
    torch.testing.assert_close(embedded, in_two_steps(logits, layer, 0.5), rtol=1e-4, atol=1e-5)
    assert gradients(embedded, logits, layer)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dvaes_of_every_dtype_train_below_and_above_one_chunk(dtype, monkeypatch):
    model = DiscreteVAE(DVAEConfig(vocabulary=CODES, width=8, blocks_per_group=1, decoder_input=8)).to(dtype)
    images = torch.rand(2, 3, 48, 48, generator=generator()).to(dtype)
    for chunk in (1 << 19, 700):
        monkeypatch.setattr(module, "CHUNK", chunk)
        likelihood_params, logits = model(images, 0.5, generator())
        assert is_worthwhile(logits, model.decoder.input) == (chunk == 700)
        likelihood_params.float().square().mean().backward()
        assert likelihood_params.dtype == dtype
        assert all(
            parameter.grad.isfinite().all() and parameter.grad.dtype == dtype for parameter in model.parameters()
        )


def test_embeddings_of_other_dtypes_are_rounded_from_float32(chunks):
    logits, layer = case()
    for dtype in (torch.bfloat16, torch.float64):
        other = copy.deepcopy(layer).to(dtype)
        expected = gumbel_embedding(logits.to(dtype).float(), copy.deepcopy(other).float(), 0.5, generator())
        actual = gumbel_embedding(logits.to(dtype), other, 0.5, generator())
        torch.testing.assert_close(actual, expected.to(dtype), rtol=1e-5, atol=1e-6)


def test_draws_follow_the_generator_or_torchs_seed():
    logits, layer = case()
    assert gumbel_embedding(logits, layer, 0.5, generator()).equal(gumbel_embedding(logits, layer, 0.5, generator()))
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(gumbel_embedding(logits, layer, 0.5))
    assert draws[0].equal(draws[1])
    assert not draws[0].equal(draws[2])


def test_frequencies_of_codes_are_those_of_the_categorical_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0])
    identity = SameConv2d(5, 5, 1)
    torch.nn.init.eye_(identity.weight.data[:, :, 0, 0])
    draws = 40_000
    codes = gumbel_embedding(logits[:, None, None].expand(1, 5, 200, 200), identity, 0.5, generator()).argmax(dim=1)
    counts = torch.bincount(codes.flatten(), minlength=5)
    expected = logits.softmax(dim=0) * draws
    assert ((counts - expected).square() / expected).sum() < 18.5  # chi-squared of 4 degrees: once in a thousand


def test_only_logits_and_weights_are_kept_for_the_backward_pass():
    logits, layer = case()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.data_ptr()) or tensor, lambda tensor: tensor
    ):
        gumbel_embedding(logits, layer, 0.5, generator())
    assert set(kept) == {logits.data_ptr(), layer.weight.data_ptr()}


def test_the_dvae_uses_it_above_one_chunk(monkeypatch):
    """The same images and seed then give other draws of the same relaxation."""
    model = DiscreteVAE(DVAEConfig(vocabulary=CODES, width=8, blocks_per_group=1, decoder_input=8))
    images = torch.rand(2, 3, 48, 48, generator=generator())
    logits = model.logits(images)
    assert not is_worthwhile(logits, model.decoder.input)
    plain = model.embed_relaxed(logits, 1e-6, generator())
    monkeypatch.setattr(module, "CHUNK", logits.numel() - 1)
    assert is_worthwhile(logits, model.decoder.input)
    assert not is_worthwhile(logits, SameConv2d(CODES, 8, 3))
    fused = model.embed_relaxed(logits, 1e-6, generator())
    assert not fused.equal(plain)
    vectors = model.decoder.embed_tokens(torch.arange(CODES)[None, None])[0, :, 0]  # (8, codes)
    distance = (fused.flatten(2)[:, :, :, None] - vectors[None, :, None]).norm(dim=1).amin(dim=-1)
    assert distance.max() < 1e-4  # each is a code's vector at this temperature
    likelihood_params, _ = model(images, 0.5, generator())
    likelihood_params.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
