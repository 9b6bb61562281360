"""Every stage in every precision: training, validation and previews work, and losses match float64."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_stages import CONFIGS, CPU, build

from dalle.losses import LikelihoodConfig
from dalle.models.dvae.relaxation import RELAXATIONS
from dalle.precision import FORMATS, autocast
from dalle.stages import STAGES
from dalle.training.logger import WandbConfig
from dalle.training.loop import train
from dalle.training.run import Run

DVAE = CONFIGS["dvae"].model
LOSSES: list[tuple[str, dict[str, Any]]] = [
    ("clip", {}),
    ("transformer", {}),
    ("transformer", {"image_targets": "soft"}),
    ("decoder", {}),
    *(("dvae", {"model": replace(DVAE, relaxation=relaxation)}) for relaxation in RELAXATIONS),
    *(("dvae", {"likelihood": LikelihoodConfig(kind=kind)}) for kind in ("laplace", "normal")),
]


def as_leaves(output: Any, dtype: torch.dtype | None = None) -> Any:
    """Return a model's output as detached leaves that require gradients."""
    if isinstance(output, torch.Tensor):
        return output.detach().to(dtype or output.dtype).requires_grad_()
    leaves = [tensor.detach().to(dtype or tensor.dtype).requires_grad_() for tensor in output]
    return type(output)(*leaves) if hasattr(output, "_fields") else tuple(leaves)


def loss_of(stage, output: Any, batch: Any) -> torch.Tensor:
    """Return the stage's loss for the given model output."""
    return stage.loss(lambda *_, **__: output, batch, 1, torch.Generator().manual_seed(0))[0]


def output_of(stage, batch: Any, precision: str) -> Any:
    """Return the model output that the stage's loss reads."""
    outputs = []

    def recorded(*inputs, **named):
        outputs.append(stage.model(*inputs, **named))
        return outputs[-1]

    with autocast(precision, CPU):
        stage.loss(recorded, batch, 1, torch.Generator().manual_seed(0))
    return outputs[0]


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("name", STAGES)
def test_every_stage_trains_in_every_precision(name, precision, dvae_folder, tmp_path, caplog):
    stage = build(name, dvae_folder, steps=2, precision=precision, validate_every=1, preview_every=1)
    train(stage, stage.config, Run(tmp_path, {"stage": {"steps": 2}}, 0, CPU, WandbConfig("disabled")))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "val"] == [1, 2]
    assert all(math.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))
    previews = sorted((tmp_path / "previews").glob("step-*.png"))
    assert len(previews) == (0 if name == "clip" else 2), caplog.text
    assert all(len(Image.open(preview).getcolors(1 << 20) or []) > 8 for preview in previews)


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("scaling", ["global", "resblock"])
def test_block_variants_train_in_every_precision(precision, scaling, dvae_folder, tmp_path):
    model = replace(CONFIGS["transformer"].model, qk_norm=True, mlp="swiglu", patterns=["paper"], depth=4)
    changes = {"model": model, "gradient_scaling": scaling, "recompute": True, "preview_every": 1}
    stage = build("transformer", dvae_folder, steps=2, precision=precision, **changes)
    train(stage, stage.config, Run(tmp_path, {"stage": {"steps": 2}}, 0, CPU, WandbConfig("disabled")))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))
    assert len(list((tmp_path / "previews").glob("step-*.png"))) == 2


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize(("name", "changes"), LOSSES, ids=lambda value: str(value)[-60:])
def test_losses_and_gradients_under_autocast_match_float64(name, changes, precision, dvae_folder):
    stage = build(name, dvae_folder, **changes)
    batch = next(stage.batches(0))
    output = output_of(stage, batch, precision)
    given, exactly = as_leaves(output), as_leaves(output, torch.float64)
    with autocast(precision, CPU):
        loss = loss_of(stage, given, batch)
    exact = loss_of(stage, exactly, batch)
    torch.testing.assert_close(loss.double(), exact.double(), rtol=1e-5, atol=1e-6)
    gradients = [
        torch.autograd.grad(scalar, leaves, allow_unused=True, materialize_grads=True)
        for scalar, leaves in ((loss, given), (exact, exactly))
    ]
    for found, expected in zip(*gradients, strict=True):
        assert (found - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize(("name", "changes"), LOSSES, ids=lambda value: str(value)[-60:])
def test_model_outputs_used_by_losses_are_float32(name, changes, precision, dvae_folder):
    stage = build(name, dvae_folder, **changes)
    output = output_of(stage, next(stage.batches(0)), precision)
    assert {tensor.dtype for tensor in output} == {torch.float32}


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_trains_with_deterministic_algorithms(name, dvae_folder, tmp_path):
    """With deterministic=true, which raises for operators without a deterministic version. CPU bits are unchanged."""
    weights = []
    for deterministic in (False, True):
        stage = build(name, dvae_folder, validate_every=1, preview_every=1)
        torch.use_deterministic_algorithms(deterministic)
        try:
            folder = tmp_path / str(deterministic)
            train(stage, stage.config, Run(folder, {"stage": {"steps": 2}}, 0, CPU, WandbConfig("disabled")))
        finally:
            torch.use_deterministic_algorithms(False)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in stage.model.parameters()]))
    assert weights[0].equal(weights[1])
