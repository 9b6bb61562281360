"""Training updates of other projects' models with the same sizes, each called as in its own documentation."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from benchmarks.peers import dalle_pytorch_model, gpt2_config, stub_unused_imports
from benchmarks.training_cases import CPU, PRECISIONS, Case, Sizes, bytes_of, random_tokens
from dalle.precision import autocast

CLIP_NORM = 1.0


def update(name: str, precision: str, model: nn.Module, loss: Callable[[], Tensor], count: int) -> Case:
    """Return an update with gradient clipping and torch's fused AdamW, as our training loop does it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(precision, CPU):
            value = loss()
        value.backward()
        clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()

    return Case(name, precision, run, count, bytes_of(model))


def gpt2(sizes: Sizes, folder: Path) -> Iterator[Case]:
    """GPT-2 of transformers: one vocabulary for captions and images."""
    from transformers import GPT2LMHeadModel

    tokens = _joint_tokens(sizes)
    for precision in PRECISIONS:
        model = GPT2LMHeadModel(gpt2_config(sizes.transformer)).train()

        def loss(model: Any = model) -> Tensor:
            return model(input_ids=tokens, labels=tokens).loss

        yield update("Hugging Face GPT-2", precision, model, loss, tokens.numel())


def x_transformers(sizes: Sizes, folder: Path) -> Iterator[Case]:
    """x-transformers' decoder with its autoregressive wrapper, and torch's attention kernel."""
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper  # type: ignore[reportMissingImports]

    config = sizes.transformer
    tokens = _joint_tokens(sizes)
    for precision in PRECISIONS:
        layers = Decoder(dim=config.width, depth=config.depth, heads=config.heads, attn_flash=True)
        model = AutoregressiveWrapper(
            TransformerWrapper(
                num_tokens=config.text_vocabulary + config.image_vocabulary,
                max_seq_len=tokens.shape[1],
                attn_layers=layers,
            )
        ).train()
        yield update("x-transformers", precision, model, lambda model=model: model(tokens), tokens.numel())


def dalle_pytorch(sizes: Sizes, folder: Path) -> Iterator[Case]:
    config = sizes.transformer
    caption, image = random_tokens(config, sizes.batch)
    for precision in PRECISIONS:
        model = dalle_pytorch_model(config).train()

        def loss(model: Any = model) -> Tensor:
            return model(caption, image, return_loss=True)

        yield update("dalle-pytorch 1.6.6", precision, model, loss, caption.numel() + image.numel())


def dalle_pytorch_dvae(sizes: Sizes, folder: Path) -> Iterator[Case]:
    """dalle-pytorch's dVAE with the defaults of its train_vae.py."""
    stub_unused_imports()
    from dalle_pytorch import DiscreteVAE  # type: ignore[reportMissingImports]

    images = torch.rand(sizes.images, 3, sizes.image_size, sizes.image_size)
    for precision in PRECISIONS:
        model = DiscreteVAE(image_size=sizes.image_size, **sizes.peer_dvae).train()

        def loss(model: Any = model) -> Tensor:
            return model(images, return_loss=True)

        yield update("dalle-pytorch 1.6.6", precision, model, loss, sizes.images)


def huggingface_clip(sizes: Sizes, folder: Path) -> Iterator[Case]:
    from transformers import CLIPConfig, CLIPModel

    own = sizes.clip
    towers = {}
    for tower in ("text", "image"):
        width = own[f"{tower}_width"]
        towers[tower] = {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": own[f"{tower}_depth"],
            "num_attention_heads": own[f"{tower}_heads"],
        }
    text = {"vocab_size": own["text_vocabulary"], "max_position_embeddings": own["text_positions"]}
    image = {"image_size": sizes.image_size, "patch_size": own["patch"]}
    config = CLIPConfig(
        text_config=towers["text"] | text,
        vision_config=towers["image"] | image,
        projection_dim=own["embedding"],
    )
    generator = torch.Generator().manual_seed(0)
    shape = (sizes.pairs, own["text_positions"])
    captions = torch.randint(1, own["text_vocabulary"] // 2, shape, generator=generator)
    images = torch.rand(sizes.pairs, 3, sizes.image_size, sizes.image_size)
    for precision in PRECISIONS:
        model = CLIPModel(config).train()

        def loss(model: Any = model) -> Tensor:
            return model(input_ids=captions, pixel_values=images, return_loss=True).loss

        yield update("Hugging Face CLIP", precision, model, loss, sizes.pairs)


def official_dvae(sizes: Sizes, folder: Path) -> Iterator[Case]:
    """OpenAI's encoder and decoder, called as in its notebook: one-hot codes of the most probable tokens."""
    from dall_e.decoder import Decoder  # type: ignore[reportMissingImports]
    from dall_e.encoder import Encoder  # type: ignore[reportMissingImports]

    config = sizes.official
    sizes_of_both = {"n_blk_per_group": config.blocks_per_group, "vocab_size": config.vocabulary, "n_hid": config.width}
    encoder = Encoder(**sizes_of_both, requires_grad=False).eval()
    decoder = Decoder(**sizes_of_both, n_init=config.decoder_input, requires_grad=False).eval()
    image = torch.rand(1, 3, sizes.official_size, sizes.official_size)

    def run(precision: str) -> None:
        with torch.inference_mode(), autocast(precision, CPU):
            tokens = encoder(image).argmax(dim=1)
            codes = torch.nn.functional.one_hot(tokens, config.vocabulary).permute(0, 3, 1, 2).float()
            decoder(codes)

    for precision in PRECISIONS:
        size = bytes_of(encoder) + bytes_of(decoder)
        yield Case("OpenAI's code", precision, lambda precision=precision: run(precision), 1, size)


PEERS: dict[str, list[Callable[[Sizes, Path], Iterator[Case]]]] = {
    "transformer": [gpt2, x_transformers, dalle_pytorch],
    "dvae": [dalle_pytorch_dvae],
    "clip": [huggingface_clip],
    "reconstruction": [official_dvae],
    "attention": [],
    "relaxation": [],
}


def available(part: str, sizes: Sizes, folder: Path) -> tuple[list[Case], dict[str, str]]:
    """Return the peers' cases for a part, and {name: reason} for peers that are not installed."""
    cases: list[Case] = []
    unavailable = {}
    for peer in PEERS[part]:
        with contextlib.redirect_stdout(None):
            try:
                cases += peer(sizes, folder)
            except ImportError as error:
                unavailable[peer.__name__] = f"not installed ({error}); make bench installs it"
    return cases, unavailable


def _joint_tokens(sizes: Sizes) -> Tensor:
    """Return captions and images as one sequence in one vocabulary."""
    caption, image = random_tokens(sizes.transformer, sizes.batch)
    return torch.cat([caption, image + sizes.transformer.text_vocabulary], dim=1)
