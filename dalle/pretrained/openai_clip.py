"""Import of OpenAI's CLIP models, ViT and ResNet, from the published files.

The files are TorchScript archives, which contain code and weights. They are read as data, without executing the code;
see `dalle.pretrained.restricted_unpickler`. State dicts of the same models can be read as well. Sizes are inferred from
the tensor shapes; attention heads are 64 wide, as in the released code (github.com/openai/CLIP, model.py).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle.checkpoint import CheckpointError
from dalle.clip_tokenizer import CLIPTokenizer
from dalle.pretrained.key_mapping import ATTENTION_NORM, ATTENTION_OUT, MLP_IN, MLP_NORM, MLP_OUT, QKV, rename_key
from dalle.pretrained.pretrained_weights import PretrainedWeights, origin
from dalle.pretrained.restricted_unpickler import read_torch_file

HEAD_WIDTH = 64  # width of an attention head
RESNET_DOWNSAMPLE = 32  # pixels per cell of the last feature map
NON_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # tensors in archives that are skipped
TRANSPOSED = ("visual.proj", "text_projection")  # plain matrices, transposed to weights of linear layers

KEY_PREFIXES = {
    "logit_scale": "log_scale",
    "token_embedding.": "text.embedding.",
    "positional_embedding": "text.positions",
    "transformer.resblocks.": "text.blocks.",
    "ln_final.": "text.norm_out.",
    "text_projection": "text.projection.weight",
}
VIT_KEY_PREFIXES = {
    "visual.conv1.": "image.patchify.",
    "visual.class_embedding": "image.class_token",
    "visual.positional_embedding": "image.positions",
    "visual.ln_pre.": "image.norm_in.",
    "visual.transformer.resblocks.": "image.blocks.",
    "visual.ln_post.": "image.norm_out.",
    "visual.proj": "image.projection.weight",
}
RESNET_KEY_PREFIXES = {
    **{f"visual.conv{number}.": f"image.stem.{2 * number - 2}.conv." for number in (1, 2, 3)},
    **{f"visual.bn{number}.": f"image.stem.{2 * number - 2}.norm." for number in (1, 2, 3)},
    **{f"visual.layer{number}.": f"image.stages.{number - 1}." for number in (1, 2, 3, 4)},
    "visual.attnpool.positional_embedding": "image.pool.positions",
    "visual.attnpool.q_proj.": "image.pool.query.",
    "visual.attnpool.k_proj.": "image.pool.key.",
    "visual.attnpool.v_proj.": "image.pool.value.",
    "visual.attnpool.c_proj.": "image.pool.out.",
}
LAYER_KEYS = {  # names within a transformer block
    ".ln_1.": ATTENTION_NORM,
    ".attn.in_proj_": QKV,
    ".attn.out_proj.": ATTENTION_OUT,
    ".ln_2.": MLP_NORM,
    ".mlp.c_fc.": MLP_IN,
    ".mlp.c_proj.": MLP_OUT,
}
RESNET_LAYER_KEYS = LAYER_KEYS | {
    ".conv1.": ".reduce.conv.",
    ".bn1.": ".reduce.norm.",
    ".conv2.": ".middle.conv.",
    ".bn2.": ".middle.norm.",
    ".conv3.": ".expand.conv.",
    ".bn3.": ".expand.norm.",
    ".downsample.0.": ".shortcut.conv.",
    ".downsample.1.": ".shortcut.norm.",
}


@dataclass
class OpenAICLIPConfig:
    """Options of prepare.py import=openai-clip.

    python prepare.py import=openai-clip weights=ViT-B-32.pt merges=bpe_simple_vocab_16e6.txt.gz out=outputs/openai-clip

    Import one of OpenAI's CLIPs, ViT or ResNet, for reranking: sample.py clip=outputs/openai-clip
    clip/clip.py of https://github.com/openai/CLIP has the URLs of the weights; the merges are in the same folder.
    The weights are read as data; code in them is not executed.
    """

    weights: str = "ViT-B-32.pt"  # TorchScript archive or state dict; URLs: clip/clip.py of github.com/openai/CLIP
    merges: str = "bpe_simple_vocab_16e6.txt.gz"  # the tokenizer's merges, from the same repository


def read_openai_clip(weights: str | Path, merges: str | Path | None = None) -> PretrainedWeights:
    """Read one of OpenAI's CLIPs, with its tokenizer if `merges` is given. Code in the file is not executed.

    Raises CheckpointError if a file is missing, damaged, refers to unexpected code or is another model, and ValueError
    if `merges` is invalid or does not match the model.
    """
    path = Path(weights)
    saved = read_torch_file(path, lambda name: name.startswith("__torch__."))  # classes defined in the archive
    tensors = {name: tensor for name, tensor in saved.tensors.items() if name.split(".")[-1] not in NON_WEIGHTS}
    sizes = _sizes(tensors, path)
    files = {"weights": path}
    tokenizer = None
    if merges is not None:
        tokenizer = _read_tokenizer(Path(merges), sizes["text_vocabulary"])
        files |= {"merges": Path(merges)} if Path(merges).is_file() else {}
    resnet = sizes["image_encoder"] == "resnet"
    prefixes, layers = (RESNET_KEY_PREFIXES, RESNET_LAYER_KEYS) if resnet else (VIT_KEY_PREFIXES, LAYER_KEYS)
    state_dict = {
        rename_key(name, KEY_PREFIXES | prefixes, layers): tensor.T if name in TRANSPOSED else tensor
        for name, tensor in tensors.items()
    }
    if resnet:  # batch counters of the norms, which older files lack; they are not used here
        norms = [name.removesuffix("running_mean") for name in state_dict if name.endswith("running_mean")]
        state_dict = {f"{norm}num_batches_tracked": torch.tensor(0) for norm in norms} | state_dict
    return PretrainedWeights("clip", sizes, state_dict, origin("openai-clip", **files), tokenizer)


def _sizes(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Infer the fields of a CLIPConfig. Raises CheckpointError unless the tensors are those of an OpenAI CLIP."""
    if "visual.proj" in tensors:
        image = _vit_sizes(tensors, path)
    elif "visual.attnpool.positional_embedding" in tensors:
        image = _resnet_sizes(tensors, path)
    else:
        raise CheckpointError(
            f"{path} is not one of OpenAI's CLIPs: it has neither visual.proj, as in a ViT, "
            f"nor visual.attnpool.positional_embedding, as in a ResNet"
        )
    vocabulary, width = _shape(tensors, "token_embedding.weight", 2, path)
    scale = _tensor(tensors, "logit_scale", 0, path).float().exp().item()
    return {
        **image,
        "text_vocabulary": vocabulary,
        "text_positions": _shape(tensors, "positional_embedding", 2, path)[0],
        "text_width": width,
        "text_depth": _count(tensors, r"transformer\.resblocks\.(\d+)\."),
        "text_heads": _heads(width, "text", path),
        "embedding": _shape(tensors, "text_projection", 2, path)[1],
        "max_logit_scale": max(100.0, scale),  # the published scales are 100, up to rounding
        "crop_rounding": "even",
        "tokenizer": "openai",
    }


def _vit_sizes(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    width, _, _, patch = _shape(tensors, "visual.conv1.weight", 4, path)
    return {
        "image_encoder": "vit",
        "image_size": patch * _grid(tensors, "visual.positional_embedding", path),
        "patch": patch,
        "image_width": width,
        "image_depth": _count(tensors, r"visual\.transformer\.resblocks\.(\d+)\."),
        "image_heads": _heads(width, "image", path),
    }


def _resnet_sizes(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    positions = "visual.attnpool.positional_embedding"
    return {
        "image_encoder": "resnet",
        "image_size": RESNET_DOWNSAMPLE * _grid(tensors, positions, path),
        "image_width": _shape(tensors, "visual.layer1.0.conv1.weight", 4, path)[0],
        "image_blocks": tuple(_count(tensors, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)),
        "image_heads": _heads(_shape(tensors, positions, 2, path)[1], "image", path),
    }


def _tensor(tensors: Mapping[str, Tensor], name: str, dimensions: int, path: Path) -> Tensor:
    """Return the tensor `name`. Raises CheckpointError if it is missing or has another number of dimensions."""
    if name not in tensors:
        raise CheckpointError(f"{path} is not one of OpenAI's CLIPs: it lacks the tensor {name}")
    tensor = tensors[name]
    if tensor.ndim != dimensions:
        raise CheckpointError(f"{path}: {name} should have {dimensions} dimensions but is {tuple(tensor.shape)}")
    return tensor


def _shape(tensors: Mapping[str, Tensor], name: str, dimensions: int, path: Path) -> tuple[int, ...]:
    return tuple(_tensor(tensors, name, dimensions, path).shape)


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Count the distinct texts that the group in the regular expression `pattern` matches in tensor names."""
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})


def _grid(tensors: Mapping[str, Tensor], name: str, path: Path) -> int:
    """Return the number of cells along each side of the image encoder's grid.

    It is inferred from the tensor `name`: position embeddings of all cells and one more token. Raises CheckpointError
    if the number of cells is not a square.
    """
    positions = _shape(tensors, name, 2, path)[0]
    side = math.isqrt(positions - 1)
    if side**2 + 1 != positions:
        raise CheckpointError(f"{path}: {name} should have 1 and a square number of positions, but has {positions}")
    return side


def _heads(width: int, encoder: str, path: Path) -> int:
    """Return the number of attention heads. Raises CheckpointError if `width` is no multiple of `HEAD_WIDTH`."""
    if width % HEAD_WIDTH:
        raise CheckpointError(
            f"{path}: the {encoder} encoder is {width} wide, not a multiple of the heads' {HEAD_WIDTH}"
        )
    return width // HEAD_WIDTH


def _read_tokenizer(merges: Path, vocabulary: int) -> CLIPTokenizer:
    tokenizer = CLIPTokenizer.read(merges, vocabulary, openai=True)
    if (tokenizer.start, tokenizer.end) != (vocabulary - 2, vocabulary - 1):
        raise ValueError(
            f"{merges} has start and end at {tokenizer.start} and {tokenizer.end}, but the model's vocabulary of "
            f"{vocabulary:,} ends with them: it is the tokenizer of another model"
        )
    return tokenizer
