"""Import of CLIP models from Hugging Face's transformers: reads the folder of a saved CLIPModel.

The folder contains config.json, model.safetensors, preprocessor_config.json for the image preprocessing, and the
tokenizer: tokenizer.json, or vocab.json with merges.txt.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dalle.checkpoint import CheckpointError, read_json
from dalle.clip_tokenizer import CLIPTokenizer
from dalle.pretrained.key_mapping import ATTENTION_NORM, ATTENTION_OUT, MLP_IN, MLP_NORM, MLP_OUT, QKV, rename_key
from dalle.pretrained.pretrained_weights import PretrainedWeights, origin
from dalle.weights_files import read_weights, weights_files, weights_path

# default values in transformers
TEXT_DEFAULTS = {
    "vocab_size": 49_408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "bos_token_id": 49_406,
    "eos_token_id": 49_407,
}
VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
PREPROCESSOR_DEFAULTS = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "resample": Image.Resampling.BICUBIC.value,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "rescale_factor": 1 / 255,
    **{f"do_{step}": True for step in ("resize", "center_crop", "rescale", "normalize")},
}
LEGACY_EOS_ID = 2  # eos_token_id in configs from before 2023, which means the largest id
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")

KEY_PREFIXES = {
    "logit_scale": "log_scale",
    "vision_model.embeddings.class_embedding": "image.class_token",
    "vision_model.embeddings.patch_embedding.": "image.patchify.",
    "vision_model.embeddings.position_embedding.weight": "image.positions",
    "vision_model.pre_layrnorm.": "image.norm_in.",
    "vision_model.encoder.layers.": "image.blocks.",
    "vision_model.post_layernorm.": "image.norm_out.",
    "visual_projection.": "image.projection.",
    "text_model.embeddings.token_embedding.": "text.embedding.",
    "text_model.embeddings.position_embedding.weight": "text.positions",
    "text_model.encoder.layers.": "text.blocks.",
    "text_model.final_layer_norm.": "text.norm_out.",
    "text_projection.": "text.projection.",
}
LAYER_KEYS = {
    ".layer_norm1.": ATTENTION_NORM,
    ".self_attn.q_proj.": QKV,
    ".self_attn.out_proj.": ATTENTION_OUT,
    ".layer_norm2.": MLP_NORM,
    ".mlp.fc1.": MLP_IN,
    ".mlp.fc2.": MLP_OUT,
}


@dataclass
class HuggingFaceCLIPConfig:
    """Options of prepare.py import=huggingface-clip.

    python prepare.py import=huggingface-clip folder=clip-vit-base-patch32 out=outputs/huggingface-clip

    Import a CLIPModel of Hugging Face's transformers, for reranking: sample.py clip=outputs/huggingface-clip
    The folder contains model.safetensors (or several files and their index), config.json, preprocessor_config.json and
    the tokenizer's files.
    """

    folder: str = "clip-vit-base-patch32"  # folder with model.safetensors and config.json
    tokenizer: str | None = None  # folder or file of the tokenizer; None: in `folder`


def read_huggingface_clip(folder: str | Path, tokenizer: str | Path | None = None) -> PretrainedWeights:
    """Read a CLIPModel, and its tokenizer if there is one in `folder` or at `tokenizer`.

    Raises CheckpointError if files are missing, damaged, or of another kind of model, and ValueError for a tokenizer
    that is invalid or does not match the model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}; it should hold model.safetensors and config.json")
    config = read_json(folder / "config.json")
    if config.get("model_type") != "clip":
        raise CheckpointError(f"{folder} holds a model of type {config.get('model_type')!r}, not 'clip'")
    text = _encoder_config(folder, config, "text_config", TEXT_DEFAULTS)
    vision = _encoder_config(folder, config, "vision_config", VISION_DEFAULTS)
    if vision["num_channels"] != 3 or not isinstance(vision["image_size"], int):
        shape = f"image_size={vision['image_size']}, num_channels={vision['num_channels']}"
        raise CheckpointError(f"{folder / 'config.json'} has {shape}; images must be square and have 3 channels")
    if not isinstance(text["vocab_size"], int):
        raise CheckpointError(f"{folder / 'config.json'} has vocab_size={text['vocab_size']!r}, which is no number")

    clip_tokenizer = _read_tokenizer(folder, tokenizer, text["vocab_size"])
    path = weights_path(folder)
    tensors = _convert_state_dict(read_weights(folder), path)
    sizes = {
        "image_size": vision["image_size"],
        "patch": vision["patch_size"],
        **_encoder_sizes("image", vision),
        "text_vocabulary": text["vocab_size"],
        "text_positions": text["max_position_embeddings"],
        **_encoder_sizes("text", text),
        **_special_token_ids(text, clip_tokenizer, folder),
        "embedding": config.get("projection_dim", 512),
        "max_logit_scale": _max_logit_scale(tensors),
        **_preprocessing(folder, vision["image_size"]),
        "tokenizer": "huggingface",
    }
    files = {f"weights {number}" if number else "weights": file for number, file in enumerate(weights_files(folder))}
    return PretrainedWeights("clip", sizes, tensors, origin("huggingface-clip", **files), clip_tokenizer)


def import_huggingface_clip(config: HuggingFaceCLIPConfig) -> PretrainedWeights:
    """Read a CLIPModel with its tokenizer, for prepare.py.

    Raises CheckpointError also if there is no tokenizer, which a checkpoint needs.
    """
    weights = read_huggingface_clip(config.folder, config.tokenizer)
    if weights.tokenizer is None:
        raise CheckpointError(f"{config.folder} has none of {', '.join(TOKENIZER_FILES)}; give tokenizer=<folder>")
    return weights


def _encoder_config(folder: Path, config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of one encoder, the entry `name` of `config`, completed by `defaults`.

    As in Hugging Face's library transformers, the entry `<name>_dict` takes precedence. Raises CheckpointError if it is
    not an object.
    """
    override = config.get(f"{name}_dict")
    values = config.get(name) or {} if override is None else override
    if not isinstance(values, dict):
        raise CheckpointError(f"{folder / 'config.json'} has {name}={values!r:.80}, which should be an object")
    return {**defaults, **values}


def _encoder_sizes(encoder: str, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{encoder}_width": config["hidden_size"],
        f"{encoder}_depth": config["num_hidden_layers"],
        f"{encoder}_heads": config["num_attention_heads"],
        f"{encoder}_mlp": config["intermediate_size"],
        f"{encoder}_activation": config["hidden_act"],
        f"{encoder}_eps": config["layer_norm_eps"],
    }


def _special_token_ids(text: Mapping[str, Any], tokenizer: CLIPTokenizer | None, folder: Path) -> dict[str, int | None]:
    """Return {"start_id": ..., "end_id": ...} from the text config and the tokenizer, if there is one.

    The text feature is read at the end token. An id of None stands for the model's default: start and end are the last
    two ids of the vocabulary. Raises CheckpointError if config and tokenizer have different end tokens.
    """
    start_id, end_id = text["bos_token_id"], text["eos_token_id"]
    if tokenizer is None:
        return (
            {"start_id": None, "end_id": None} if end_id == LEGACY_EOS_ID else {"start_id": start_id, "end_id": end_id}
        )
    if end_id not in (LEGACY_EOS_ID, tokenizer.end):
        raise CheckpointError(
            f"{folder / 'config.json'} has eos_token_id={end_id}, but the tokenizer ends captions with {tokenizer.end}"
        )
    return {"start_id": tokenizer.start, "end_id": tokenizer.end}


def _read_tokenizer(folder: Path, path: str | Path | None, vocabulary: int) -> CLIPTokenizer | None:
    if path is None and not any((folder / name).exists() for name in TOKENIZER_FILES):
        return None
    tokenizer = CLIPTokenizer.read(folder if path is None else path, vocabulary)
    if tokenizer.vocabulary > vocabulary:
        raise ValueError(
            f"{path or folder} has {tokenizer.vocabulary:,} token ids, but the model's vocabulary is {vocabulary:,}: "
            f"it is the tokenizer of another model"
        )
    return tokenizer


def _preprocessing(folder: Path, image_size: int) -> dict[str, Any]:
    """Read the image preprocessing, and return it as fields of `CLIPConfig`.

    Raises CheckpointError unless it is resize, centre crop, rescale, normalise.
    """
    options, path = {"size": image_size, "crop_size": image_size}, folder / "preprocessor_config.json"
    if path.exists():
        options = read_json(path)
    elif (path := folder / "processor_config.json").exists():  # newer versions may write this file
        options = read_json(path).get("image_processor", {})
    if not isinstance(options, dict):
        raise CheckpointError(f"{path} has image_processor={options!r:.80}, which should be an object")
    options = {**PREPROCESSOR_DEFAULTS, **options}
    size, crop, resample, factor = (options[name] for name in ("size", "crop_size", "resample", "rescale_factor"))
    shortest_edge = size.get("shortest_edge") if isinstance(size, dict) else size
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    filters = {resampling.value: resampling.name.lower() for resampling in Image.Resampling}

    supported = [
        ("size", isinstance(shortest_edge, int), {"shortest_edge": image_size}),
        ("crop_size", crop == {"height": image_size, "width": image_size}, f"{image_size}, the size of the images,"),
        ("resample", isinstance(resample, int) and resample in filters, f"Pillow's {', '.join(map(str, filters))}"),
        ("rescale_factor", isinstance(factor, float) and abs(factor - 1 / 255) < 1e-6, "1/255"),
        *((name, _is_triple(options[name]), "a number for each of 3 channels") for name in ("image_mean", "image_std")),
        *((name, options[name], True) for name in PREPROCESSOR_DEFAULTS if name.startswith("do_")),
    ]
    for name, is_supported, expected in supported:
        if not is_supported:
            raise CheckpointError(f"{path} has {name}={options[name]}, but only {expected} is supported")
    return {
        "shorter_side": shortest_edge,
        "resample": filters[resample],
        "pixel_mean": tuple(options["image_mean"]),
        "pixel_std": tuple(options["image_std"]),
    }


def _is_triple(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(number, float | int) for number in value)


def _max_logit_scale(tensors: Mapping[str, Tensor]) -> float:
    """Return the maximum logit scale: 100, or the published scale if larger.

    Hugging Face's library transformers does not clip the scale.
    """
    scale = tensors.get("log_scale")
    return 100.0 if scale is None or scale.ndim else max(100.0, scale.float().exp().item())


def _convert_state_dict(published: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    tensors = {}
    for name, tensor in published.items():
        if name.endswith((".position_ids", ".k_proj.weight", ".k_proj.bias", ".v_proj.weight", ".v_proj.bias")):
            continue  # position_ids: buffers of older versions; keys and values are merged with the queries below
        if ".q_proj." in name:
            projections = [published.get(name.replace(".q_proj.", f".{projection}_proj.")) for projection in "qkv"]
            if any(projection is None or projection.shape != tensor.shape for projection in projections):
                raise CheckpointError(
                    f"{path} should have keys and values as {name} {tuple(tensor.shape)}, but has not"
                )
            tensor = torch.cat([projection for projection in projections if projection is not None])
        tensors[rename_key(name, KEY_PREFIXES, LAYER_KEYS)] = tensor
    return tensors
