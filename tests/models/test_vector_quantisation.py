"""Vector quantisation: nearest codes, straight-through gradients, and checkpoints."""

import pytest
import torch
from einops import rearrange

from dalle.losses import quantisation_error
from dalle.models.dvae.model import DiscreteVAE, DVAEConfig
from dalle.models.dvae.relaxation import negative_squared_distance, straight_through_vectors
from dalle.precision import autocast

CONFIG = DVAEConfig(11, 8, groups=2, blocks_per_group=1, decoder_input=6, gain=1.0, relaxation="vector_quantisation")


def fresh() -> DiscreteVAE:
    torch.manual_seed(0)
    return DiscreteVAE(CONFIG)


def images() -> torch.Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_logits_are_negative_squared_distances():
    generator = torch.Generator().manual_seed(0)
    vectors, codebook = torch.randn(2, 5, 3, 4, generator=generator), torch.randn(7, 5, generator=generator)
    distances = torch.cdist(rearrange(vectors, "b d h w -> (b h w) d"), codebook)
    expected = rearrange(-distances.square(), "(b h w) v -> b v h w", b=2, h=3)
    found = negative_squared_distance(vectors, codebook)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(quantisation_error(found), -expected.amax(dim=1))


@torch.no_grad()
def test_training_reconstruction_matches_decoded_tokens():
    model = fresh()
    likelihood_params, logits = model(images(), 1.0, torch.Generator().manual_seed(0))
    codebook = model.decoder.input.weight[:, :, 0, 0].T  # (v, d)
    assert model.encode(images()).equal(logits.argmax(dim=1))
    looked_up = rearrange(codebook[model.encode(images())], "b h w d -> b d h w")
    torch.testing.assert_close(likelihood_params, model.decoder.decode_embeddings(looked_up))
    torch.testing.assert_close(model.decode(model.encode(images())), model.decode(logits.argmax(dim=1)))


def test_decoder_gradients_reach_the_encoder_and_not_the_codebook():
    model = fresh()
    likelihood_params, _ = model(images(), 1.0)
    likelihood_params.square().sum().backward()
    assert model.encoder.output.weight.grad.any()
    assert model.decoder.input.weight.grad is None


def test_straight_through_vectors_have_code_values_and_encoder_gradients():
    vectors = torch.randn(2, 5, 3, 3, requires_grad=True)
    chosen = torch.randn(2, 5, 3, 3, requires_grad=True)
    towards = torch.randn(2, 5, 3, 3)
    passed = straight_through_vectors(vectors, chosen)
    torch.testing.assert_close(passed, chosen)
    (passed * towards).sum().backward()
    assert vectors.grad is not None and vectors.grad.equal(towards)
    assert chosen.grad is None


def test_quantisation_error_moves_codes_and_vectors_together():
    model = fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    errors = []
    for _ in range(20):
        _, logits = model(images(), 1.0)
        error = quantisation_error(logits).mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < errors[0] / 2


@torch.no_grad()
def test_checkpoint_round_trip(tmp_path):
    model = fresh().eval()
    model.save(tmp_path)
    loaded = DiscreteVAE.load(tmp_path)
    assert loaded.encode(images()).equal(model.encode(images()))
    assert loaded.logits(images()).shape == (3, 11, 4, 4)


def test_wider_bottleneck_raises():
    with pytest.raises(ValueError, match="needs bottleneck_kernel=1, not 3"):
        DVAEConfig(relaxation="vector_quantisation", bottleneck_kernel=3)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_distances_to_a_clustered_codebook_are_exact_under_autocast(precision):
    generator = torch.Generator().manual_seed(0)
    centre = 10 * torch.randn(16, generator=generator)
    codebook = centre + 0.01 * torch.randn(32, 16, generator=generator)
    vectors = centre[:, None, None] + 0.01 * torch.randn(2, 16, 5, 5, generator=generator)
    with autocast(precision, torch.device("cpu")):
        found = negative_squared_distance(vectors, codebook)
        errors = quantisation_error(found)
    exact = negative_squared_distance(vectors.double(), codebook.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=0)
    assert found.argmax(dim=1).equal(exact.argmax(dim=1))
    assert (errors > 0).all()
