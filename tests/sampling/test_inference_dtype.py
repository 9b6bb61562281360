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
def test_auto_is_bfloat16_on_a_gpu_and_other_names_are_as_they_say(precision, device, dtype):
    assert inference_dtype(precision, torch.device(device)) == dtype


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision=float16 is unknown; choose auto, float32 or bfloat16"):
        inference_dtype("float16", torch.device("cpu"))
