"""Small reference CLIPs: a made-up tokenizer, and transformers' CLIPModel with random weights in two formats."""

import gzip
import json
from pathlib import Path

import torch
from PIL import Image
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

MERGES = [
    ("t", "h"),
    ("th", "e</w>"),
    ("c", "a"),
    ("ca", "t</w>"),
    ("d", "o"),
    ("do", "g</w>"),
    ("r", "e"),
    ("re", "d</w>"),
    ("a", "n"),
    ("an", "d</w>"),
    ("'", "s</w>"),
    ("Ã", "©</w>"),  # the two bytes of an é at the end of a word
    ("Ï", "ĥ</w>"),
    ("!", "!</w>"),
]
VOCABULARY = 512 + len(MERGES) + 2
CAPTIONS = ["The cat's red dog and the cat", "a dog", "12 cafés & a thing!!", ""]


def vocabulary() -> dict[str, int]:
    """Tokens to ids, in the order of the published files."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(pair) for pair in MERGES)]
    return {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


def write_merges(path: Path) -> Path:
    """Write merges like OpenAI's file: a line with the version, then more merges than the vocabulary has room for."""
    lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', *(" ".join(pair) for pair in MERGES), "z z</w>", ""]
    content = "\n".join(lines).encode("utf-8")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def huggingface_model(text: dict | None = None, vision: dict | None = None, projection_dim: int = 24) -> CLIPModel:
    """Return a small CLIPModel in eval mode with all weights random; new ones have gains of 1 and biases of 0."""
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1}
    ids = {"vocab_size": VOCABULARY, "bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1}
    config = CLIPConfig(
        text_config={**sizes, **ids, "max_position_embeddings": 40, **(text or {})},
        vision_config={**sizes, "image_size": 32, "patch_size": 8, **(vision or {})},
        projection_dim=projection_dim,
        logit_scale_init_value=3.0,
    )
    model = CLIPModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim and "norm" not in name:
                width = parameter[0].numel() if parameter.ndim > 1 and "embedding" not in name else 1
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * width**-0.5)
            elif parameter.ndim:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def saved(model: CLIPModel, folder: Path) -> Path:
    """Save a model and its tokenizer as Hugging Face publishes them. Returns the folder."""
    model.save_pretrained(folder)
    CLIPTokenizer(vocab=vocabulary(), merges=MERGES).save_pretrained(folder)
    return folder


def edited(folder: Path, name: str, **changes) -> None:
    """Change entries of a JSON file in `folder`, which is created if it is missing."""
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


def openai_state_dict(model: CLIPModel) -> dict[str, Tensor]:
    """Return the same weights under the names and in the layout of OpenAI's released code."""
    theirs = model.state_dict()

    def block(source: str, target: str) -> dict[str, Tensor]:
        attention = f"{source}.self_attn"
        state = {
            f"{target}.attn.in_proj_{kind}": torch.cat([theirs[f"{attention}.{part}_proj.{kind}"] for part in "qkv"])
            for kind in ("weight", "bias")
        }
        for one, other in (
            ("self_attn.out_proj", "attn.out_proj"),
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
        ):
            state |= {f"{target}.{other}.{kind}": theirs[f"{source}.{one}.{kind}"] for kind in ("weight", "bias")}
        return state

    state = {
        "positional_embedding": theirs["text_model.embeddings.position_embedding.weight"],
        "text_projection": theirs["text_projection.weight"].T,
        "logit_scale": theirs["logit_scale"],
        "visual.class_embedding": theirs["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": theirs["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": theirs["visual_projection.weight"].T,
        "visual.conv1.weight": theirs["vision_model.embeddings.patch_embedding.weight"],
        "token_embedding.weight": theirs["text_model.embeddings.token_embedding.weight"],
    }
    for one, other in (
        ("vision_model.pre_layrnorm", "visual.ln_pre"),
        ("vision_model.post_layernorm", "visual.ln_post"),
        ("text_model.final_layer_norm", "ln_final"),
    ):
        state |= {f"{other}.{kind}": theirs[f"{one}.{kind}"] for kind in ("weight", "bias")}
    for number in range(model.config.vision_config.num_hidden_layers):
        state |= block(f"vision_model.encoder.layers.{number}", f"visual.transformer.resblocks.{number}")
    for number in range(model.config.text_config.num_hidden_layers):
        state |= block(f"text_model.encoder.layers.{number}", f"transformer.resblocks.{number}")
    return {name: tensor.clone() for name, tensor in state.items()}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy())
