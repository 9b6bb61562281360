"""dVAE stage: the ELBO, validation metrics, previews, and the warning of a collapsed codebook."""

import logging
import math
from dataclasses import replace

import pytest
import torch
from tiny_stages import BLOCKS, CONFIGS, SIZE, build, overfit

from dalle import checkpoint, losses
from dalle.data import open_source
from dalle.data.loader import ImageBatch, ordered_batches
from dalle.data.transforms import inference_crop
from dalle.image_conversion import to_tensor
from dalle.models.dvae.model import DiscreteVAE
from dalle.models.dvae.relaxation import argmax_one_hot, gumbel_softmax
from dalle.seeds import torch_generator
from dalle.stages.dvae import DVAEStageConfig, LikelihoodConfig, collapse_warning
from dalle.training.schedules import Schedule

NORMAL = LikelihoodConfig("normal", scale=0.1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def held_out_pixels(count: int = 10) -> torch.Tensor:
    (batch,) = ordered_batches(open_source(replace(BLOCKS, val=count), "val"), inference_crop, count)
    return batch.images.float() / 255


def patchwork(count: int = 8) -> ImageBatch:
    """Return images of four plain colours each, which no constant image approximates."""
    corners = torch.randint(2, (count, 3, 2, 2), generator=generator()) * 255
    images = corners.repeat_interleave(SIZE // 2, dim=2).repeat_interleave(SIZE // 2, dim=3)
    return ImageBatch(images.byte(), [""] * count, [""] * count)


@torch.no_grad()
def hard_error(model: DiscreteVAE, images: torch.Tensor) -> float:
    return (model.decode(model.encode(images)) - images).square().mean().sqrt().item()


def test_one_batch_overfits():
    kl_weight, temperature = Schedule("cosine", 1.0, 0.0, 60), Schedule("cosine", 1.0, 0.3, 60)
    stage, batch = build("dvae", likelihood=NORMAL, kl_weight=kl_weight, temperature=temperature), patchwork()
    images = batch.images.float() / 255
    assert hard_error(stage.model, images) > 0.4
    found = overfit(stage, batch, 120, 5e-3)
    assert found[0] > 5
    assert found[-1] < -0.8  # the least is ln(0.1 sqrt(2 pi)) = -1.38, of pictures without a fault
    assert hard_error(stage.model, images) < 0.1
    assert stage.model.encode(images).unique().numel() > 2


def test_logit_laplace_loss_decreases():
    found = overfit(build("dvae", kl_weight=Schedule(start=0.1)), patchwork(), 60, 5e-3)
    assert found[-1] < found[0] - 0.3


def test_loss_is_nll_plus_weighted_kl_at_the_scheduled_values():
    stage = build(
        "dvae", kl_weight=Schedule("cosine", 0.0, 6.6, 1000), temperature=Schedule("linear", 1.0, 1 / 16, 100)
    )
    batch = next(stage.batches(0))
    for step, weight, temperature in [(0, 0.0, 1.0), (500, 3.3, 1 / 16), (2000, 6.6, 1 / 16)]:
        loss, measures = stage.loss(stage.model, batch, step, generator())
        assert measures["kl_weight"] == pytest.approx(weight)
        assert measures["temperature"] == temperature
        expected = measures["nll"] + weight * measures["kl"] / (3 * 4 * 4)  # codes of 4 x 4 pixels
        torch.testing.assert_close(loss, expected)
        likelihood_params, logits = stage.model(batch.images.float() / 255, temperature, generator())
        torch.testing.assert_close(measures["kl"], losses.kl_to_uniform(logits).mean())
        torch.testing.assert_close(
            measures["nll"], losses.logit_laplace_nll(likelihood_params, batch.images.float() / 255).mean()
        )


def test_loss_noise_depends_only_on_its_generator():
    stage = build("dvae")
    batch = next(stage.batches(0))
    first = stage.loss(stage.model, batch, 0, generator())[0]
    torch.manual_seed(5)
    assert stage.loss(stage.model, batch, 0, generator())[0].equal(first)
    assert not stage.loss(stage.model, batch, 0, generator(1))[0].equal(first)


def test_micro_batch_gradients_average_to_batch_gradient():
    """With the same noise. The loss is a mean over images."""
    stage = build("dvae", kl_weight=Schedule(start=2.0))
    batch = next(stage.batches(0))
    noise = generator()
    parameters = list(stage.model.parameters())
    whole = torch.autograd.grad(stage.loss(stage.model, batch, 0, noise)[0], parameters)
    noise = generator()
    halves = []
    for part in (slice(0, 4), slice(4, 8)):
        half = replace(batch, images=batch.images[part], captions=batch.captions[part], keys=batch.keys[part])
        halves.append(torch.autograd.grad(stage.loss(stage.model, half, 0, noise)[0], parameters))
    for one, first, second in zip(whole, *halves, strict=True):
        torch.testing.assert_close((first + second) / 2, one, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_validation_metrics_match_their_definitions():
    stage = build("dvae", batch_size=4, likelihood=NORMAL, temperature=Schedule("cosine", 1.0, 0.3, 2))
    model, images = stage.model.eval(), held_out_pixels()
    metrics = stage.validate(model)

    tokens = model.encode(images)
    hard = model.decode(tokens)
    assert metrics["hard_error"] == pytest.approx((hard - images).square().mean().sqrt().item(), rel=1e-4)
    share = torch.bincount(tokens.flatten(), minlength=16) / tokens.numel()
    entropy = -sum(p * math.log(p) for p in share.tolist() if p > 0)
    assert metrics["code_perplexity"] == pytest.approx(math.exp(entropy), rel=1e-4)
    assert metrics["codes_used"] == tokens.unique().numel()
    kl = losses.kl_to_uniform(model.logits(images)).mean().item()
    assert metrics["kl"] == pytest.approx(kl, rel=1e-4)
    assert metrics["negative_elbo"] == pytest.approx(metrics["nll"] + kl / 48, rel=1e-4)
    assert metrics["true_negative_elbo"] == pytest.approx(metrics["negative_elbo"] + metrics["bound_gap"], rel=1e-4)


@torch.no_grad()
def test_elbo_uses_samples_and_gap_vanishes_at_low_temperature():
    gaps = []
    for temperature in (2.0, 1e-6):
        stage = build("dvae", batch_size=10, likelihood=NORMAL, temperature=Schedule(start=temperature))
        metrics = stage.validate(stage.model.eval())
        gaps.append(abs(metrics["bound_gap"]))
        logits = stage.model.logits(held_out_pixels())
        relaxed = [
            gumbel_softmax(logits[number : number + 1], 1.0, torch_generator("validation codes", number))
            for number in range(len(logits))
        ]
        draw = argmax_one_hot(torch.cat(relaxed))
        nll = NORMAL.nll(stage.model.decode_codes(draw), held_out_pixels()).mean().item()
        assert metrics["true_negative_elbo"] == pytest.approx(nll + metrics["kl"] / 48, rel=1e-4)
    assert gaps[0] > 1e-3
    assert gaps[1] < 1e-5


def test_vector_quantisation_adds_code_distance_to_nll():
    stage = build("dvae", commitment=3.0, model=replace(CONFIGS["dvae"].model, relaxation="vector_quantisation"))
    batch = next(stage.batches(0))
    loss, measures = stage.loss(stage.model, batch, 0, generator())
    torch.testing.assert_close(loss, measures["nll"] + 3 * measures["distance"] / 48)
    assert measures["distance"] > 0
    loss.backward()
    assert all(parameter.grad is not None for parameter in stage.model.encoder.parameters())
    assert stage.model.decoder.input.weight.grad.any()
    found = stage.validate(stage.model).keys()  # its codes are chosen, so there is no bound
    assert found == {"nll", "soft_error", "hard_error", "codes_used", "code_perplexity"}


@torch.no_grad()
@pytest.mark.parametrize(
    ("schedule", "temperature"),
    [
        (Schedule("cosine", 1.0, 1e-4, 2), 1e-4),
        (Schedule("constant", 1e-4), 1e-4),
        (Schedule("linear", 1.0, 0.0, 4), 0.5),
    ],
)
def test_soft_reconstructions_use_the_final_temperature(schedule, temperature, monkeypatch):
    stage = build("dvae", temperature=schedule)  # of 2 updates
    seen = []
    forward = DiscreteVAE.forward
    monkeypatch.setattr(DiscreteVAE, "forward", lambda self, x, t, g=None: seen.append(t) or forward(self, x, t, g))
    stage.validate(stage.model)
    stage.preview(stage.model)
    assert set(seen) == {temperature}


@torch.no_grad()
def test_preview_shows_images_soft_and_hard_reconstructions(monkeypatch):
    stage, sheets = build("dvae"), []
    monkeypatch.setattr("dalle.stages.preview_grid.image_grid", sheets.append)
    stage.preview(stage.model.eval())
    images = held_out_pixels(8)
    hard = stage.model.decode(stage.model.encode(images))
    ((real, soft, decoded),) = sheets
    assert [row.title for row in (real, soft, decoded)] == [
        "held-out images",
        "soft reconstructions (relaxed codes)",
        "hard reconstructions (most probable codes)",
    ]
    assert len(soft.cells) == 8
    for row, expected in ((real, images), (decoded, hard)):
        shown = to_tensor([cell.image for cell in row.cells])
        torch.testing.assert_close(shown, expected.contiguous(), atol=3e-3, rtol=0)


@pytest.mark.parametrize("kind", ["logit_laplace", "laplace", "normal"])
def test_likelihood_config_selects_the_loss(kind):
    likelihood_params = torch.randn(1, 6, 2, 2, generator=generator())
    images = torch.rand(1, 3, 2, 2, generator=generator())
    expected = {
        "logit_laplace": losses.logit_laplace_nll(likelihood_params, images, 0.2),
        "laplace": losses.laplace_nll(likelihood_params, images, 0.3),
        "normal": losses.normal_nll(likelihood_params, images, 0.3),
    }[kind]
    assert LikelihoodConfig(kind, scale=0.3, floor=0.2).nll(likelihood_params, images).equal(expected)


def test_unknown_likelihood_raises():
    with pytest.raises(ValueError, match="likelihood.kind='mse' is unknown; choose logit_laplace, laplace or normal"):
        LikelihoodConfig("mse")


def test_collapse_message_says_what_to_do():
    told = collapse_warning({"codes_used": 3, "code_perplexity": 1.2, "kl": 0.05}, vocabulary=512)
    assert told is not None
    assert "codebook collapse: 3 of 512 codes are used" in told
    assert "a perplexity of 1.2" in told
    assert "stage.kl_weight" in told


@pytest.mark.parametrize(
    ("used", "perplexity", "vocabulary"), [(9, 30.0, 512), (9, 4.0, 512), (1, 2.1, 8), (9, 512.0, 512), (20, 2.6, 128)]
)
def test_no_collapse_message_for_a_used_codebook(used, perplexity, vocabulary):
    assert collapse_warning({"codes_used": used, "code_perplexity": perplexity, "kl": 1.0}, vocabulary) is None


@torch.no_grad()
def test_validation_warns_of_collapse(caplog, monkeypatch):
    stage = build("dvae")
    output = stage.model.encoder.output
    output.weight.zero_()
    output.bias.zero_()
    output.bias[7] = 1
    with caplog.at_level(logging.WARNING):
        assert stage.validate(stage.model)["code_perplexity"] == pytest.approx(1)
    assert "codebook collapse: 1 of 16 codes are used" in caplog.text
    caplog.clear()
    monkeypatch.setattr(DiscreteVAE, "logits", lambda _, images: torch.randn(len(images), 16, 4, 4))
    with caplog.at_level(logging.WARNING):
        assert stage.validate(stage.model)["code_perplexity"] > 4
    assert caplog.text == ""


def test_saved_stage_loads_as_dvae(tmp_path):
    stage = build("dvae")
    stage.save(tmp_path, stage.model, {"step": 7})
    loaded = DiscreteVAE.load(tmp_path)
    assert loaded.config == CONFIGS["dvae"].model
    images = held_out_pixels(2)
    assert loaded.encode(images).equal(stage.model.eval().encode(images))


def test_checkpoint_meta_has_what_evaluation_needs(tmp_path):
    schedule = Schedule("cosine", 1.0, 0.25, steps=2)
    stage = build("dvae", likelihood=NORMAL, temperature=schedule)
    stage.save(tmp_path, stage.model, {"step": 7})
    _, meta = checkpoint.read_config(tmp_path, "dvae")
    assert meta["likelihood"] == {"kind": "normal", "scale": 0.1, "floor": None}
    assert meta["temperature"] == pytest.approx(0.25)
    assert LikelihoodConfig(**meta["likelihood"]) == NORMAL


def test_defaults_are_the_papers():
    config = DVAEStageConfig()
    assert (config.steps, config.batch_size, config.transform, config.likelihood.kind) == (
        3_000_000,
        512,
        "dvae",
        "logit_laplace",
    )
    assert config.kl_weight == Schedule("cosine", 0.0, 6.6, 5_000)
    assert config.temperature == Schedule("cosine", 1.0, 1 / 16, 150_000)
    optimizer = config.optimizer
    assert optimizer.learning_rate == Schedule("cosine", 1e-4, 1.25e-6, 1_200_000)
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay) == ((0.9, 0.999), 1e-8, 1e-4)
    assert config.ema.decay == 0.999
