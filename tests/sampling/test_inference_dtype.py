import pytest
import torch

from dalle.sampling.inference_dtype import inference_dtype


@pytest.mark.parametrize(
    ("precision", "device", "dtype"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("float32", "cuda", torch.float32),
        ("bfloat16", "cpu", torch.bfloat16),
    ],
)
def test_inference_dtype_for_precision_and_device(precision, device, dtype):
    assert inference_dtype(precision, torch.device(device)) == dtype


def test_unknown_precision_raises():
    with pytest.raises(ValueError, match="precision=float16 is unknown; choose auto, float32 or bfloat16"):
        inference_dtype("float16", torch.device("cpu"))
