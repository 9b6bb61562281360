import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dalle.precision import autocast, blocked_cumulative_sum, in_float32, names_amx
from dalle.training import auto_precision
from dalle.training.auto_precision import MIN_PARAMETERS_FOR_BFLOAT16, choose_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL, LARGE = nn.Linear(8, 8), nn.Linear(MIN_PARAMETERS_FOR_BFLOAT16, 1, device="meta")


@pytest.mark.parametrize(
    ("capability", "expected", "reason"),
    [
        ((8, 0), "bfloat16", "the default on a GPU"),  # A100
        ((12, 0), "bfloat16", "the default on a GPU"),
        ((7, 5), "float16", "a GPU of compute capability 7.5 has no bfloat16, which begins at 8.0"),  # T4
        ((7, 0), "float16", "a GPU of compute capability 7.0 has no bfloat16, which begins at 8.0"),  # V100
    ],
)
def test_auto_on_a_gpu_depends_on_its_generation(monkeypatch, capability, expected, reason):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_precision("auto", SMALL, CUDA) == (expected, reason)


@pytest.mark.parametrize(
    ("model", "amx", "expected", "reason"),
    [
        (LARGE, True, "bfloat16", "the processor has AMX"),
        (LARGE, False, "float32", "the processor has no AMX"),
        (SMALL, True, "float32", "72 parameters are too few to gain speed by bfloat16"),
        (SMALL, False, "float32", "the processor has no AMX"),
    ],
)
def test_auto_on_cpu_depends_on_processor_and_model_size(monkeypatch, model, amx, expected, reason):
    monkeypatch.setattr(auto_precision, "has_amx", lambda: amx)
    assert choose_precision("auto", model, CPU) == (expected, reason)


@pytest.mark.parametrize(
    ("flags", "found"), [("amx_bf16 amx_tile", True), ("avx512_bf16", False), ("", False), (None, False)]
)
def test_amx_is_detected_from_cpu_flags(tmp_path, flags, found):
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"model name : Some\nflags : fpu vme {flags}\n")
    assert names_amx(tmp_path / "cpuinfo") == found


def test_autocast_computes_in_the_given_precision():
    x, weight = torch.ones(2, 2), torch.ones(2, 2)
    with autocast("bfloat16", CPU):
        assert F.linear(x, weight).dtype == torch.bfloat16
    with autocast("float32", CPU):
        assert F.linear(x, weight).dtype == torch.float32


@pytest.mark.parametrize(("given", "computed"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_in_float32_disables_autocast(given, computed):
    product = in_float32(lambda x, *, other: x @ other)
    x = torch.ones(2, 2, dtype=given)
    with autocast("bfloat16", CPU):
        assert product(x, other=x).dtype == computed


def test_invalid_precisions_raise():
    with pytest.raises(ValueError, match="choose auto, float32, bfloat16, float16"):
        choose_precision("fp16", SMALL, CPU)


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("asked", ["float32", "bfloat16", "float16"])
def test_named_precision_is_used(asked, device):
    assert choose_precision(asked, SMALL, device).name == asked


@pytest.mark.parametrize("length", [1, 127, 128, 129, 1000])
def test_blocked_cumsum_matches_cumsum(length):
    x = torch.rand(3, 2, length, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(blocked_cumulative_sum(x), x.cumsum(dim=-1))
