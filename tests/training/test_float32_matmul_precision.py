"""`float32_matmul_precision` is in force in the forward and backward passes of updates on a GPU, and nowhere else."""

from collections import defaultdict
from dataclasses import asdict, replace

import pytest
import torch
from line_stage import CPU, LineConfig, LineStage, fit
from test_loop import Spoilt

from dalle import precision
from dalle.precision import describe_float32_matmul_precision, float32_matmul_precision, use_exact_float32
from dalle.stages.dvae import DVAEStageConfig
from dalle.training.loop import DivergenceError
from dalle.training.run import defaults_of, differences

CUDA = torch.device("cuda")
EXACT, TF32 = ("highest", False), "tf32"


def state() -> tuple[str, bool]:
    """Return the precision of matrix products, and whether convolutions are in TF32."""
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def exact():
    use_exact_float32()
    yield
    use_exact_float32()


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Make training on this CPU set what it sets on a GPU, which has no effect here."""
    monkeypatch.setattr(
        "dalle.training.loop.float32_matmul_precision", lambda name, _: float32_matmul_precision(name, CUDA)
    )


class Observed(LineStage):
    """A stage that notes the state in everything the loop calls."""

    def __init__(self, config):
        super().__init__(config)
        self.states = defaultdict(set)
        self.model.layers[0].weight.register_hook(lambda _: self.states["backward"].add(state()))

    def batches(self, start):
        for batch in super().batches(start):
            self.states["batches"].add(state())
            yield batch

    def loss(self, *arguments):
        self.states["loss"].add(state())
        return super().loss(*arguments)

    def validate(self, model):
        self.states["validate"].add(state())
        return super().validate(model)

    def preview(self, model):
        self.states["preview"].add(state())
        return super().preview(model)

    def save(self, *arguments):
        self.states["save"].add(state())
        return super().save(*arguments)


@pytest.mark.parametrize(
    ("name", "expected"), [("highest", EXACT), ("high", ("high", True)), ("medium", ("medium", True))]
)
def test_updates_use_it_and_everything_else_is_exact(name, expected, tmp_path, as_on_a_gpu):
    config = LineConfig(float32_matmul_precision=name)
    stage = fit(tmp_path, config, Observed(config))
    assert stage.states == {
        **dict.fromkeys(("batches", "loss", "backward"), {expected}),
        **dict.fromkeys(("validate", "preview", "save"), {EXACT}),
    }
    assert state() == EXACT


def test_it_ends_with_an_error_in_an_update(tmp_path, as_on_a_gpu):
    config = LineConfig(float32_matmul_precision="high", max_skipped_steps=3)
    with pytest.raises(DivergenceError):
        fit(tmp_path, config, Spoilt(config, range(2, 20)))
    assert state() == EXACT
    with pytest.raises(RuntimeError, match="in an update"), float32_matmul_precision("high", CUDA):
        raise RuntimeError("in an update")
    assert state() == EXACT


def test_it_has_no_effect_on_a_cpu(tmp_path, capsys):
    config = LineConfig(float32_matmul_precision="high")
    stages = [
        fit(tmp_path / line_config.float32_matmul_precision, line_config, Observed(line_config))
        for line_config in (config, LineConfig())
    ]
    assert all(found == {EXACT} for found in stages[0].states.values())
    weights = [torch.cat([parameter.flatten() for parameter in stage.model.parameters()]) for stage in stages]
    assert weights[0].equal(weights[1])
    assert capsys.readouterr().err.count("float32_matmul_precision=high has no effect on a CPU") == 1


def test_exact_float32_replaces_settings_by_any_of_torchs_names():
    torch.set_float32_matmul_precision("medium")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    use_exact_float32()
    assert state() == EXACT
    if hasattr(torch.backends.cudnn, "conv"):  # newer names, which torch refuses to read beside the others
        torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = TF32
        use_exact_float32()
        assert state() == EXACT
    assert not torch.backends.cuda.matmul.allow_tf32


def test_an_unknown_value_is_refused():
    with pytest.raises(
        ValueError, match="float32_matmul_precision=tf32 is unknown; choose one of highest, high, medium"
    ):
        LineConfig(float32_matmul_precision=TF32)


def test_a_run_resumes_with_the_same_value_only():
    one, other = (
        {"stage": asdict(LineConfig(float32_matmul_precision=matmul_precision))}
        for matmul_precision in ("highest", "high")
    )
    assert differences(one, other) == ["stage.float32_matmul_precision was highest, now high"]
    older = {"stage": {key: value for key, value in one["stage"].items() if key != "float32_matmul_precision"}}
    assert differences(older, one, {"stage": defaults_of(LineConfig)}) == []


@pytest.mark.parametrize(
    ("capability", "sentence"),
    [((9, 0), "updates are in TF32"), ((7, 0), "has no effect on this GPU, which has no TF32")],
)
def test_the_log_says_what_it_changes(capability, sentence, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert describe_float32_matmul_precision("highest", CUDA) == describe_float32_matmul_precision("highest", CPU) == ""
    assert describe_float32_matmul_precision("high", CUDA).endswith(sentence)


def test_format_of_products():
    found = {
        (dtype, name, available): precision.matmul_format(dtype, name, available)
        for dtype in precision.FORMATS
        for name in ("highest", "high")
        for available in (False, True)
    }
    assert {key for key, value in found.items() if value != key[0]} == {("float32", "high", True)}
    assert found["float32", "high", True] == TF32


def test_rounded_distances_to_codes_are_refused():
    quantising = replace(DVAEStageConfig().model, relaxation="vector_quantisation")
    with pytest.raises(ValueError, match="would round the distances to the codes .* use highest"):
        DVAEStageConfig(model=quantising, float32_matmul_precision="high")
