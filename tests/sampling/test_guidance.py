import torch

from dalle.sampling.guidance import Guidance, append_unconditional, apply_guidance, empty_caption
from dalle.sampling.sampling_config import DecodingConfig


def test_guidance_scale_interpolates_and_extrapolates_logits():
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    conditional, unconditional = logits[:3], logits[3:]
    torch.testing.assert_close(apply_guidance(logits, 1.0), conditional)
    torch.testing.assert_close(apply_guidance(logits, 0.0), unconditional)
    torch.testing.assert_close(apply_guidance(logits, 2.0), conditional + (conditional - unconditional))


def test_empty_captions_are_appended_once_per_caption(make_transformer):
    model = make_transformer(pads="masked")
    captions = model.sequence.pad_captions([[1, 2, 3], [4]])
    text, empty = model.prefill(captions), model.prefill(empty_caption(model.sequence))
    both = model.prefill(torch.cat([captions, empty_caption(model.sequence).expand(2, -1)]))
    for found, expected in zip(append_unconditional(text, empty), both, strict=True):
        torch.testing.assert_close(found.keys, expected.keys)
        torch.testing.assert_close(found.values, expected.values)
        assert found.key_padding_mask.equal(expected.key_padding_mask)


def test_passes_have_twice_the_inputs_with_guidance_only(make_transformer):
    model, logits = make_transformer(), torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    prefix = model.prefill(model.sequence.pad_captions([[1, 2, 3], [4]]))
    inputs = torch.tensor([[1, 2, 3], [4, 5, 6]])
    for scale, repeats in ((None, 1), (1.0, 1), (0.0, 2), (3.0, 2)):
        guidance = Guidance(model, DecodingConfig(guidance=scale), torch.device("cpu"))
        assert guidance.duplicate(inputs).equal(inputs.repeat(repeats, 1))
        assert guidance.duplicate(inputs[:, 0]).equal(inputs[:, 0].repeat(repeats))
        assert len(guidance.extend_prefix(prefix)[0].keys) == 2 * repeats
        assert guidance.combine(logits).equal(logits if scale in (None, 1) else apply_guidance(logits, scale))
