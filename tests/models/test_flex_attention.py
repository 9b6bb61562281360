"""FlexAttention equals attention with the dense mask: forward on CPUs, where it has no backward pass, both on a GPU."""

import copy

import pytest
import torch
from every_pattern import PATTERNS
from test_sparse_attention import GRID, PADDING_MASK, TEXT
from torch import Tensor

from dalle.models.attention import DenseMaskAttention
from dalle.models.transformer.flex_attention import FlexAttention, sequence_mask_mod
from dalle.models.transformer.patterns import Column, Convolutional, Row, sequence_attend_mask
from dalle.models.transformer.sparse_attention import build_attention

PADDINGS = pytest.mark.parametrize("key_padding_mask", [None, PADDING_MASK], ids=["no mask", "some padding"])
# torch advises to compile flex_attention, which takes long on a CPU
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def queries_keys_values(length: int, width: int, device: torch.device | str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, length, width, generator=generator).to(device) for _ in range(3)]


@PADDINGS
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@torch.no_grad()
def test_flex_attention_equals_the_dense_mask(pattern, key_padding_mask):
    qkv = queries_keys_values(TEXT + GRID**2, 8)
    attend = FlexAttention(pattern, TEXT, GRID)
    expected = DenseMaskAttention(sequence_attend_mask(pattern, TEXT, GRID))(*qkv, key_padding_mask)
    torch.testing.assert_close(attend(*qkv, key_padding_mask), expected)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_mask_function_equals_the_dense_mask(pattern):
    positions = torch.arange(TEXT + GRID**2)
    zero = torch.tensor(0)
    attends = sequence_mask_mod(pattern, TEXT, GRID)(zero, zero, positions[:, None], positions[None, :])
    assert attends.equal(sequence_attend_mask(pattern, TEXT, GRID))


@pytest.mark.parametrize(("pattern", "share"), [(Row(), 0.42), (Column(), 0.37), (Convolutional(11), 0.5)], ids=str)
def test_blocks_without_attention_are_skipped_at_the_papers_sizes(pattern, share):
    """Of all blocks of 128 x 128 scores; causal attention needs 0.55 of them."""
    attend = FlexAttention(pattern, 256, 32)
    block_mask = attend._build_block_mask(torch.device("cpu"))
    assert 1 - block_mask.sparsity() / 100 <= share


def test_setting_uses_flex_attention_on_cuda_only():
    attend = build_attention(Row(), TEXT, GRID, "flex")
    assert attend.device_type == "cuda"
    assert (type(attend.specialised), type(attend.fallback)) == (FlexAttention, DenseMaskAttention)
    with pytest.raises(ValueError, match="attention=flex has one softmax for all keys"):
        build_attention(Row(), TEXT, GRID, "flex", "separate")


@torch.no_grad()
def test_model_can_be_copied_and_moved_and_has_equal_logits(make_transformer):
    model, reference = make_transformer(attention="flex"), make_transformer(attention="dense")
    assert model.state_dict().keys() == reference.state_dict().keys()
    model = copy.deepcopy(model.to("cpu"))
    caption = model.sequence.pad_captions([[1, 2, 3]])
    image = torch.randint(13, (1, GRID**2), generator=torch.Generator().manual_seed(0))
    expected = reference(caption, image)
    torch.testing.assert_close(model(caption, image), expected)  # with the dense mask, on a CPU
    attends = {name: copy.deepcopy(attend.specialised) for name, attend in model.attend.items()}
    torch.testing.assert_close(model(caption, image, attends), expected)


@pytest.mark.gpu
@PADDINGS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_flex_attention_on_gpu_equals_the_dense_mask_forward_and_backward(gpu, pattern, dtype, key_padding_mask):
    if gpu.type != "cuda":
        pytest.skip("FlexAttention has no backward pass on CPUs")
    text, grid = TEXT, 16  # 261 positions: the last block is not full
    qkv = [tensor.requires_grad_() for tensor in queries_keys_values(text + grid**2, 32, gpu)]
    key_padding_mask = None if key_padding_mask is None else key_padding_mask.to(gpu)
    flex = FlexAttention(pattern, text, grid).to(gpu)
    dense = DenseMaskAttention(sequence_attend_mask(pattern, text, grid))
    output_gradient = torch.randn(2, 3, text + grid**2, 32, generator=torch.Generator().manual_seed(1)).to(gpu)
    found = []
    for attend, used in ((flex, dtype), (dense.to(gpu), torch.float32)):
        output = attend(*(tensor.to(used) for tensor in qkv), key_padding_mask).float()
        found.append([output, *torch.autograd.grad((output * output_gradient).sum(), qkv)])
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() < (1e-4 if dtype == torch.float32 else 0.02) * theirs.norm()
