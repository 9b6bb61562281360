import pytest
import torch

from dalle.sampling.inference_dtype import inference_dtype


@pytest.mark.parametrize(
    ("precision", "device", "dtype"),
    [
        ("auto", "cpu", torch.float32),
        ("float32", "cuda", torch.float32),
        ("bfloat16", "cpu", torch.bfloat16),
    ],
)
def test_inference_dtype_for_precision_and_device(precision, device, dtype):
    assert inference_dtype(precision, torch.device(device)) == dtype


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 9), torch.bfloat16)])
def test_auto_on_a_gpu_is_bfloat16_where_it_is_not_emulated(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert inference_dtype("auto", torch.device("cuda")) == dtype
    assert inference_dtype("bfloat16", torch.device("cuda")) == torch.bfloat16


def test_unknown_precision_raises():
    with pytest.raises(ValueError, match="precision=float16 is unknown; choose auto, float32 or bfloat16"):
        inference_dtype("float16", torch.device("cpu"))
