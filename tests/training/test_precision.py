import pytest
import torch
import torch.nn.functional as F

from dalle.training import precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_is_bfloat16_on_cuda():
    assert precision.resolve("auto", CUDA) == "bfloat16"


@pytest.mark.parametrize("instructions", [False, True])
@pytest.mark.parametrize("faster", [False, True])
def test_auto_on_a_cpu_wants_the_instructions_and_the_speed(monkeypatch, instructions, faster):
    monkeypatch.setattr(precision, "_has_bfloat16_instructions", lambda: instructions)
    monkeypatch.setattr(precision, "_bfloat16_is_faster", lambda: faster)
    expected = "bfloat16" if instructions and faster else "float32"
    assert precision.resolve("auto", CPU) == expected


def test_the_race_is_decided_by_its_margin():
    assert precision._bfloat16_is_faster(size=64, rounds=2, margin=0.0)
    assert not precision._bfloat16_is_faster(size=64, rounds=2, margin=1e9)


def test_autocast_computes_in_the_format_and_float32_leaves_all_alone():
    x, weight = torch.ones(2, 2), torch.ones(2, 2)
    with precision.autocast("bfloat16", CPU):
        assert F.linear(x, weight).dtype == torch.bfloat16
    with precision.autocast("float32", CPU):
        assert F.linear(x, weight).dtype == torch.float32


def test_impossible_formats_are_refused():
    with pytest.raises(ValueError, match="choose auto, float32, bfloat16, float16"):
        precision.resolve("fp16", CPU)


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("asked", ["float32", "bfloat16", "float16"])
def test_what_is_asked_for_by_name_is_had(asked, device):
    assert precision.resolve(asked, device) == asked
