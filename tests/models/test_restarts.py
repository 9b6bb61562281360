"""Restarts of unused codes: new values, positions, and unchanged codes."""

from copy import deepcopy

import pytest
import torch
from torch.testing import assert_close

from dalle.models.dvae.model import DiscreteVAE, DVAEConfig
from dalle.models.dvae.restarts import restart_unused_codes


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(8, 3, 32, 32, generator=generator(1))


@pytest.fixture
def model() -> DiscreteVAE:
    """Return a model in which 4 of 32 codes are so probable that the others are never used."""
    torch.manual_seed(0)
    model = DiscreteVAE(DVAEConfig(vocabulary=32, width=16, groups=3, blocks_per_group=1, decoder_input=8))
    with torch.no_grad():
        model.encoder.output.bias[4:] -= 100
    return model.eval()


def test_restarted_codes_are_used(model, images):
    before = model.encode(images)
    assert len(before.unique()) <= 4
    count = restart_unused_codes(model, images, generator())
    assert count == 32 - len(before.unique())
    assert len(model.encode(images).unique()) > 16


def test_restarted_code_decodes_like_the_code_it_splits(model, images):
    used = model.encode(images).unique()
    unused = torch.tensor([code for code in range(32) if code not in used])
    restart_unused_codes(model, images, generator())
    columns = model.decoder.input.weight
    assert all(any(torch.equal(columns[:, code], columns[:, other]) for other in used) for code in unused)


def test_used_codes_keep_their_weights(model, images):
    used = model.encode(images).unique()
    encoder, decoder = model.encoder.output.weight.clone(), model.decoder.input.weight.clone()
    restart_unused_codes(model, images, generator())
    assert torch.equal(model.encoder.output.weight[used], encoder[used])
    assert torch.equal(model.decoder.input.weight[:, used], decoder[:, used])


def test_without_unused_codes_nothing_changes(images):
    torch.manual_seed(0)
    model = DiscreteVAE(DVAEConfig(vocabulary=2, width=16, groups=3, blocks_per_group=1, decoder_input=8))
    assert len(model.encode(images).unique()) == 2
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert restart_unused_codes(model, images, generator()) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_restarts_are_reproducible(model, images):
    other = deepcopy(model)
    restart_unused_codes(model, images, generator(5))
    restart_unused_codes(other, images, generator(5))
    assert torch.equal(model.encoder.output.weight, other.encoder.output.weight)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_restarts_do_not_depend_on_the_size_of_a_pass(model, images, batch_size):
    at_once = deepcopy(model)
    passes = []
    model.encoder.input.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0])))
    counts = [
        restart_unused_codes(at_once, images, generator(5)),
        restart_unused_codes(model, images, generator(5), batch_size),
    ]
    assert counts[0] == counts[1] > 0
    assert (sum(passes), max(passes)) == (len(images), min(batch_size, len(images)))
    for ours, theirs in zip(model.parameters(), at_once.parameters(), strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_positions_are_sampled_in_proportion_to_their_errors(model, images, monkeypatch):
    images[:, :, :16] = model.decode(model.encode(images)).detach()[:, :, :16]
    again = model.decode(model.encode(images)).detach()  # pixels of one position reach its neighbours' codes
    expected = (again - images).square().mean(dim=1).unfold(1, 4, 4).unfold(2, 4, 4).mean(dim=(3, 4)).flatten()
    drawn_from = []
    draw = torch.multinomial
    monkeypatch.setattr(
        torch, "multinomial", lambda weights, *a, **k: drawn_from.append(weights) or draw(weights, *a, **k)
    )
    restart_unused_codes(model, images, generator())
    assert_close(drawn_from[0], expected, rtol=1e-4, atol=1e-8)
    assert expected.max() > 4 * expected.min()
