"""Decoders of other projects with the same sizes, each called as in its own documentation."""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.compare import Decoder
from benchmarks.compiled_decoder import CompiledDecoder, MissingCompilerError, sampler
from dalle.models.transformer.config import TransformerConfig


def gpt2(config: TransformerConfig, precision: str, device: torch.device | None = None) -> Decoder:
    """Return GPT-2 of transformers with `generate`: one vocabulary for captions and images, learned positions, GELU."""
    from transformers import GPT2LMHeadModel

    sizes = gpt2_config(config)
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, precision))  # no float32 copy of large models
    try:
        with device or torch.device("cpu"):
            model = GPT2LMHeadModel(sizes).eval()
    finally:
        torch.set_default_dtype(default)

    def decode(batch: int, tokens: int) -> Tensor:
        caption = _caption(config, batch).to(model.device)
        settings = {"min_new_tokens": tokens, "max_new_tokens": tokens, "do_sample": True, "top_k": 0}
        return model.generate(caption, attention_mask=torch.ones_like(caption), **settings)  # type: ignore[operator]

    return Decoder("Hugging Face GPT-2, generate", precision, model, decode)


def gpt2_config(config: TransformerConfig) -> Any:
    """Return transformers' GPT2Config with the sizes of `config` and without dropout, as our transformer has none."""
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=config.text_vocabulary + config.image_vocabulary,
        n_positions=config.text_positions + config.grid**2,
        n_embd=config.width,
        n_layer=config.depth,
        n_head=config.heads,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
    )


def dalle_pytorch_as_shipped(config: TransformerConfig) -> Decoder:
    """Return dalle-pytorch 1.6.6, called as in its README with the cache enabled.

    It drops the cache if guidance is off, so each token costs a forward pass over the whole sequence. `decode` starts
    in the middle of the image, where the cost of a pass is the mean over all tokens.
    """
    model = dalle_pytorch_model(config)
    start = config.grid**2 // 2

    def decode(batch: int, tokens: int) -> Tensor:
        return _generate(model, config, batch, start, tokens)

    return Decoder("dalle-pytorch 1.6.6, as shipped", "float32", model, decode, cached=False)


def dalle_pytorch_patched(config: TransformerConfig) -> Decoder:
    """Return dalle-pytorch 1.6.6 with one line fixed: the cache is passed on without guidance too."""
    model = dalle_pytorch_model(config)

    def with_cache(*inputs: Tensor, cond_scale: float, cache: dict | None) -> Tensor:
        return model(*inputs, cache=cache)

    model.forward_with_cond_scale = with_cache

    def decode(batch: int, tokens: int) -> Tensor:
        return _generate(model, config, batch, 0, tokens)

    return Decoder("dalle-pytorch 1.6.6, cache fixed", "float32", model, decode)


def gpt_fast(config: TransformerConfig, precision: str) -> Decoder:
    """Return a Llama-like decoder with a static KV cache and a compiled step, as gpt-fast decodes.

    gpt-fast is no package and has no model of these sizes, so `CompiledDecoder` follows its published method.

    Raises:
        MissingCompilerError: torch.compile has no C++ compiler on this machine.
    """
    model = CompiledDecoder(config).to(getattr(torch, precision)).eval()
    sample = sampler(model)
    return Decoder(
        "compiled, as gpt-fast", precision, model, lambda batch, tokens: sample(_caption(config, batch), tokens)
    )


PEERS: dict[str, Callable[[TransformerConfig], Decoder]] = {
    "gpt2-float32": lambda config: gpt2(config, "float32"),
    "gpt2-bfloat16": lambda config: gpt2(config, "bfloat16"),
    "gpt-fast-float32": lambda config: gpt_fast(config, "float32"),
    "gpt-fast-bfloat16": lambda config: gpt_fast(config, "bfloat16"),
    "dalle-pytorch-patched": dalle_pytorch_patched,
    "dalle-pytorch": dalle_pytorch_as_shipped,
}


def available(names: list[str], config: TransformerConfig) -> tuple[list[Decoder], dict[str, str]]:
    """Return the decoders of the peers `names`, and {name: reason} for those that cannot run."""
    peers, unavailable = [], {}
    for name in names:
        try:
            peers.append(PEERS[name](config))
        except ImportError as error:
            unavailable[name] = f"not installed ({error}); make bench installs it"
        except MissingCompilerError as error:
            unavailable[name] = str(error)
    return peers, unavailable


def _caption(config: TransformerConfig, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(1, config.text_vocabulary // 2, (1, config.text_positions), generator=generator)
    return words.repeat(batch, 1)


def dalle_pytorch_model(config: TransformerConfig) -> Any:
    stub_unused_imports()
    from dalle_pytorch import DALLE, DiscreteVAE  # type: ignore[reportMissingImports]

    class Tokens(DiscreteVAE):
        """Identity dVAE, whose images are their tokens: the time of the dVAE is not measured."""

        given: Tensor

        def get_codebook_indices(self, images: Tensor) -> Tensor:
            return self.given

        def decode(self, img_seq: Tensor) -> Tensor:
            return img_seq

    vae = Tokens(
        image_size=8 * config.grid, num_layers=3, num_tokens=config.image_vocabulary, codebook_dim=8, hidden_dim=8
    )
    return DALLE(
        dim=config.width,
        vae=vae,
        num_text_tokens=config.text_vocabulary - config.text_positions,  # it adds a padding token for each position
        text_seq_len=config.text_positions,
        depth=config.depth,
        heads=config.heads,
        dim_head=config.width // config.heads,
    ).eval()


def _generate(model: Any, config: TransformerConfig, batch: int, start: int, tokens: int) -> Tensor:
    """Run `generate_images` for `tokens` tokens after `start` given ones, not up to the end of the image."""
    model.image_seq_len = start + tokens
    side = 8 * config.grid
    model.vae.given = torch.zeros(batch, config.grid**2, dtype=torch.int64)
    given = {"img": torch.zeros(batch, 3, side, side), "num_init_img_tokens": start} if start else {}
    return model.generate_images(_caption(config, batch), use_cache=True, **given)


def stub_unused_imports() -> None:
    """Stub unused imports of dalle-pytorch: VQGAN code (needs torchvision) and setuptools' old pkg_resources.

    Raises:
        ImportError: dalle-pytorch is not installed.
    """
    if find_spec("dalle_pytorch") is None:
        raise ImportError("No module named 'dalle_pytorch'")
    vqgan = ModuleType("taming.models.vqgan")
    vqgan.VQModel = vqgan.GumbelVQ = object  # type: ignore[attr-defined]
    resources = ModuleType("pkg_resources")
    resources.get_distribution = lambda name: SimpleNamespace(version="0")  # type: ignore[attr-defined]
    stubs = {"taming": ModuleType("taming"), "taming.models": ModuleType("taming.models")}
    for name, module in {**stubs, vqgan.__name__: vqgan, resources.__name__: resources}.items():
        sys.modules.setdefault(name, module)
