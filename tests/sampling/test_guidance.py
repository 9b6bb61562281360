import torch

from dalle.sampling.guidance import append_unconditional, apply_guidance, empty_caption


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
