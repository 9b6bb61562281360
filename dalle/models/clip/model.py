"""CLIP: an image encoder and a text encoder with a shared embedding space (Radford et al. 2021).

Used to rerank candidate images (DALL-E, Section 2.6). The encoders have the architecture of OpenAI's released models,
so weights published by OpenAI and Hugging Face can be loaded.
"""

import math
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor, nn

from dalle import checkpoint, hub
from dalle.checkpoint import CheckpointError
from dalle.clip_tokenizer import CLIPTokenizer
from dalle.image_conversion import to_tensor
from dalle.models.attention import causal
from dalle.models.blocks import BlockConfig, TransformerBlock
from dalle.models.clip.config import CLIPConfig
from dalle.models.clip.resnet import ResNetEncoder
from dalle.pretrained.huggingface_clip import read_huggingface_clip
from dalle.pretrained.openai_clip import read_openai_clip
from dalle.pretrained.pretrained_weights import PretrainedWeights
from dalle.tokenizer import CaptionTokenizer, check_captions

# loaders of a checkpoint's tokenizer.json; the published tokenizers include a start and an end token
TOKENIZERS = {
    "dalle": CaptionTokenizer.load,
    "openai": partial(CLIPTokenizer.load, openai=True),
    "huggingface": CLIPTokenizer.load,
}


class VisionTransformer(nn.Module):
    """Vision transformer: pixels (b, 3, h, w) -> features (b, embedding), the projected state of the class token."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        width = config.image_width
        patches = (config.image_size // config.patch) ** 2
        self.patchify = nn.Conv2d(3, width, config.patch, stride=config.patch, bias=False)
        self.class_token = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.positions = nn.Parameter(torch.randn(patches + 1, width) / math.sqrt(width))
        self.norm_in = nn.LayerNorm(width, config.image_eps)
        block = BlockConfig(
            width, config.image_heads, config.image_activation, mlp_width=config.image_mlp, eps=config.image_eps
        )
        self.blocks = nn.ModuleList(TransformerBlock(block) for _ in range(config.image_depth))
        self.norm_out = nn.LayerNorm(width, config.image_eps)
        self.projection = nn.Linear(width, config.embedding, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        x = rearrange(self.patchify(pixels), "b d h w -> b (h w) d")
        x = torch.cat([repeat(self.class_token, "d -> b 1 d", b=len(x)), x], dim=1)  # (b, 1 + patches, d)
        x = self.norm_in(x + self.positions)
        for block in self.blocks:
            x = block(x)
        return self.projection(self.norm_out(x[:, 0]))  # (b, embedding)


class TextEncoder(nn.Module):
    """Causal text transformer: ids (b, n) -> features (b, embedding), the projected state of the end token."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        width = config.text_width
        self.end_id = config.end_id
        self.embedding = nn.Embedding(config.text_vocabulary, width)
        self.positions = nn.Parameter(torch.randn(config.text_positions, width) * 0.01)
        block = BlockConfig(
            width, config.text_heads, config.text_activation, mlp_width=config.text_mlp, eps=config.text_eps
        )
        self.blocks = nn.ModuleList(TransformerBlock(block) for _ in range(config.text_depth))
        self.norm_out = nn.LayerNorm(width, config.text_eps)
        self.projection = nn.Linear(width, config.embedding, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.positions[: ids.shape[1]]  # (b, n, d)
        for block in self.blocks:
            x = block(x, causal)
        # attention is causal, so later tokens do not affect the end token
        end = x[torch.arange(len(x), device=x.device), self.end_positions(ids)]
        return self.projection(self.norm_out(end))  # (b, embedding)

    def end_positions(self, ids: Tensor) -> Tensor:
        """Return the position of the first end token, by default the largest id: (b, n) -> (b,)."""
        return ids.argmax(dim=1) if self.end_id is None else (ids == self.end_id).int().argmax(dim=1)


def _resnet(config: CLIPConfig) -> ResNetEncoder:
    return ResNetEncoder(
        config.image_size, config.image_width, config.image_blocks, config.image_heads, config.embedding
    )


IMAGE_ENCODERS = {"vit": VisionTransformer, "resnet": _resnet}


class CLIP(nn.Module):
    """Contrastive model that scores images against captions. Trained by `dalle.stages.clip`."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: CLIPConfig, tokenizer: CaptionTokenizer | CLIPTokenizer | None = None):
        super().__init__()
        # published tokenizers count the start and end tokens; ours has ids of words only
        words = config.text_vocabulary - (2 if config.tokenizer == "dalle" else 0)
        if tokenizer is not None and tokenizer.vocabulary > words:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocabulary} ids, but text_vocabulary={config.text_vocabulary} has room "
                f"for {words}; use the tokenizer that CLIP was trained with, or a larger text_vocabulary"
            )
        self.config = config
        self.tokenizer = tokenizer
        self.image = IMAGE_ENCODERS[config.image_encoder](config)
        self.text = TextEncoder(config)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / config.initial_temperature)))
        if isinstance(self.image, VisionTransformer):
            _init_blocks(self.image.blocks, config.image_width, config.image_depth)
        _init_blocks(self.text.blocks, config.text_width, config.text_depth)
        self.register_buffer("pixel_mean", rearrange(torch.tensor(config.pixel_mean), "c -> c 1 1"), persistent=False)
        self.register_buffer("pixel_std", rearrange(torch.tensor(config.pixel_std), "c -> c 1 1"), persistent=False)

    @property
    def scale(self) -> Tensor:
        """Logit scale, a scalar: the learned inverse temperature, at most `max_logit_scale` of the config."""
        scale = self.log_scale.exp().squeeze()  # a vector of one number if sharded
        # the gradient bypasses the clip: otherwise a scale above the maximum could never decrease
        return scale + (scale.clamp(max=self.config.max_logit_scale) - scale).detach()

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return unit vectors of images and of captions, (b, embedding) each, and the logit scale."""
        return self.encode_image(pixels), self.encode_text(ids), self.scale

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode images: (b, 3, image_size, image_size) in [0, 1] -> (b, embedding) unit vectors."""
        normalised = (pixels - self.pixel_mean) / self.pixel_std
        features = self.image(normalised.to(self.log_scale.dtype))
        return F.normalize(features.float(), dim=-1)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Encode captions: (b, n) ids from `tokenize`, n <= text_positions -> (b, embedding) unit vectors."""
        return F.normalize(self.text(ids).float(), dim=-1)

    def tokenize(self, captions: list[str], truncate: bool = False) -> Tensor:
        """Tokenize captions: start token, caption, end token, padding with 0; (b, text_positions) int64.

        Raises `ValueError` for a caption that is too long, unless `truncate`, and if the model has no tokenizer;
        `TypeError` for one text in place of a list of them.
        """
        if self.tokenizer is None:
            raise ValueError(
                "this CLIP was built without a tokenizer; load one from a checkpoint folder, or give the tokenizer's "
                "files where weights are imported"
            )
        check_captions(captions)
        max_tokens = self.config.text_positions - 2
        rows = torch.zeros(len(captions), self.config.text_positions, dtype=torch.int64)
        for row, caption in zip(rows, captions, strict=True):
            ids = self.tokenizer.encode(caption)
            if len(ids) > max_tokens and not truncate:
                raise ValueError(f"the caption has {len(ids)} tokens, but CLIP reads at most {max_tokens}: {caption!r}")
            ids = [self.config.start_token, *ids[:max_tokens], self.config.end_token]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    def trim_padding(self, ids: Tensor) -> Tensor:
        """Remove columns after the last end token of a batch, up to a multiple of 8: (b, n) -> (b, at most n).

        Embeddings stay the same.
        """
        length = int(self.text.end_positions(ids).max()) + 1
        return ids[:, : -(-length // 8) * 8].contiguous()  # contiguous: copied to a GPU without waiting

    def preprocess(self, images: list[Image.Image]) -> Tensor:
        """Resize images to `shorter_side` and crop the centre: (b, 3, image_size, image_size) in [0, 1]."""
        return to_tensor([_square(image.convert("RGB"), self.config) for image in images])

    @torch.inference_mode()
    def score(self, images: list[Image.Image], captions: list[str], batch_size: int = 256) -> Tensor:
        """Compute the cosine similarity of every image with every caption: (images, captions), on the CPU."""
        device = self.log_scale.device
        text_features = self.encode_text(self.tokenize(captions, truncate=True).to(device))
        chunks = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
        no_features = text_features[:0]  # the result of no images
        image_features = torch.cat(
            [no_features, *(self.encode_image(self.preprocess(chunk).to(device)) for chunk in chunks)]
        )
        return (image_features @ text_features.T).cpu()

    def save(self, folder: str | Path, meta: dict | None = None) -> None:
        """Write model and tokenizer to a checkpoint folder, which `load` reads. `meta`: JSON-serialisable entries."""
        checkpoint.save_model(folder, "clip", self, self.config, meta, self.tokenizer)

    @classmethod
    def load(cls, folder: str | Path) -> "CLIP":
        """Load a model in eval mode from a checkpoint folder. Raises `CheckpointError` if it is missing or invalid."""
        return checkpoint.load_model(folder, "clip", CLIPConfig, partial(_with_tokenizer, folder=Path(folder)))

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> "CLIP":
        """Load a model in eval mode from a folder, by a name in the package, or from user/name on the Hugging Face Hub.

        The model may be in a sub-folder clip there. Raises `CheckpointError` as `load` and `hub.local_folder` do.
        """
        return cls.load(hub.model_folder(name, "clip", revision))

    @classmethod
    def from_openai(cls, path: str | Path, merges: str | Path | None = None) -> "CLIP":
        """Load one of OpenAI's CLIPs, ViT or ResNet, in eval mode and fp32, with its own image preprocessing.

        `path` is a published TorchScript archive (ViT-B-32.pt, RN50.pt, ...), read without executing its code, or a
        state dict. `merges` is bpe_simple_vocab_16e6.txt.gz, published with the weights, or another file that
        `CLIPTokenizer.read` accepts; without it the model has no tokenizer. Raises `ValueError` for invalid files.
        """
        return cls.from_pretrained_weights(read_openai_clip(path, merges))

    @classmethod
    def from_huggingface(cls, folder: str | Path, tokenizer: str | Path | None = None) -> "CLIP":
        """Load a CLIPModel saved by Hugging Face's transformers, in eval mode and fp32.

        `folder` contains model.safetensors, config.json, optionally preprocessor_config.json, and the tokenizer's
        files; `tokenizer` is their folder if it is another one. Without them the model has no tokenizer. Raises
        `ValueError` for invalid files.
        """
        return cls.from_pretrained_weights(read_huggingface_clip(folder, tokenizer))

    @classmethod
    def from_pretrained_weights(cls, weights: PretrainedWeights) -> "CLIP":
        """Build a model in eval mode from weights read by `dalle.pretrained`.

        Raises `CheckpointError` for invalid sizes, or tensors that do not match them.
        """
        path = Path(weights.meta["files"]["weights"]["file"])
        try:
            model = cls(CLIPConfig(**weights.sizes), weights.tokenizer)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise CheckpointError(f"no CLIP has the sizes of {path}: {error}") from error
        checkpoint.check_tensors(model.state_dict(), weights.tensors, path)
        model.load_state_dict(weights.tensors)
        return model.eval()


def _with_tokenizer(config: CLIPConfig, folder: Path) -> CLIP:
    return CLIP(config, TOKENIZERS[config.tokenizer](folder / checkpoint.TOKENIZER))


def _init_blocks(blocks: nn.ModuleList, width: int, depth: int) -> None:
    """Initialise transformer blocks as OpenAI's code initialises those of the text encoder; biases 0."""
    residual = width**-0.5 * (2 * depth) ** -0.5
    for block in blocks:
        assert isinstance(block, TransformerBlock)
        block.init_weights(qkv=width**-0.5, attention_out=residual, expand=(2 * width) ** -0.5, mlp_out=residual)


def _square(image: Image.Image, config: CLIPConfig) -> Image.Image:
    """Resize an RGB image to `shorter_side` and crop its centre to `image_size`, as `config` says."""
    size, shorter = config.image_size, min(image.size)
    width, height = (side * (config.shorter_side or size) // shorter for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling[config.resample.upper()])
    offset = round if config.crop_rounding == "even" else math.floor
    left, top = offset((width - size) / 2), offset((height - size) / 2)
    return image.crop((left, top, left + size, top + size))
