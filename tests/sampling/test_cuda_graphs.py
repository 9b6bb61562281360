import pytest
import torch
from torch import Tensor

from dalle.models.transformer.model import Transformer
from dalle.sampling.cuda_graphs import DecodingStep, decoding_step


def example(model: Transformer) -> tuple[Tensor, Tensor]:
    """Return two captions, and images of three candidates of each."""
    images = torch.randint(13, (6, 16), generator=torch.Generator().manual_seed(1))
    return model.sequence.pad_captions([[1, 2, 3], [4]]), images


def all_logits(model: Transformer, step: DecodingStep, images: Tensor) -> Tensor:
    inputs = model.sequence.image_inputs(images)
    return torch.stack([step(inputs[:, n], n).clone() for n in range(16)], dim=1)


@pytest.mark.parametrize("recompute_kv", [False, True])
@torch.inference_mode()
def test_step_matches_full_forward(make_transformer, recompute_kv):
    model = make_transformer(depth=4)
    captions, images = example(model)
    step = decoding_step(model, model.prefill(captions), 3, recompute_kv)
    expected = model(captions.repeat_interleave(3, dim=0), images).image
    torch.testing.assert_close(all_logits(model, step, images), expected, rtol=1e-4, atol=1e-4)
