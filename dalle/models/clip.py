"""CLIP: an image transformer and a text transformer that agree on what belongs together (Radford et al. 2021).

Reranks the sampler's candidates (DALL-E, Section 2.6). The towers are those of OpenAI's released ViT models.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor, nn

from dalle import checkpoint
from dalle.checkpoint import CheckpointError
from dalle.models.attention import causal
from dalle.models.blocks import ResidualBlock
from dalle.pixels import to_tensor
from dalle.tokenizer import CaptionTokenizer


@dataclass(frozen=True)
class CLIPConfig:
    """Sizes of a CLIP model; the defaults are those of the published ViT-B/32."""

    image_size: int = 224  # side of the pictures in pixels
    patch: int = 32  # side of a patch in pixels
    image_width: int = 768
    image_depth: int = 12
    image_heads: int = 12
    text_vocabulary: int = 49_408  # ids of captions, and the start and end tokens as the last two
    text_positions: int = 77  # the start and end tokens included
    text_width: int = 512
    text_depth: int = 12
    text_heads: int = 8
    embedding: int = 512  # dimensions of the space that pictures and captions share
    initial_temperature: float = 0.07  # CLIP paper, Section 2.5
    largest_scale: float = 100.0  # the logits' scale is clipped here, for stability (Section 2.5)

    def __post_init__(self) -> None:
        if self.image_size % self.patch:
            raise ValueError(f"image_size={self.image_size} must be a multiple of patch={self.patch}")

    @property
    def start_token(self) -> int:
        return self.text_vocabulary - 2

    @property
    def end_token(self) -> int:
        return self.text_vocabulary - 1


class ImageTower(nn.Module):
    """Pixels to a feature: patches, a class token, pre-norm transformer blocks, a projection of the class token."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        width = config.image_width
        patches = (config.image_size // config.patch) ** 2
        self.patchify = nn.Conv2d(3, width, config.patch, stride=config.patch, bias=False)
        self.class_token = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.positions = nn.Parameter(torch.randn(patches + 1, width) / math.sqrt(width))
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(ResidualBlock(width, config.image_heads) for _ in range(config.image_depth))
        self.norm_out = nn.LayerNorm(width)
        self.projection = nn.Linear(width, config.embedding, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        x = rearrange(self.patchify(pixels), "b d h w -> b (h w) d")
        x = torch.cat([repeat(self.class_token, "d -> b 1 d", b=len(x)), x], dim=1)  # (b, 1 + patches, d)
        x = self.norm_in(x + self.positions)
        for block in self.blocks:
            x = block(x)
        return self.projection(self.norm_out(x[:, 0]))  # (b, embedding)


class TextTower(nn.Module):
    """Token ids to a feature: causal pre-norm transformer blocks, a projection of the end token's state."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        width = config.text_width
        self.embedding = nn.Embedding(config.text_vocabulary, width)
        self.positions = nn.Parameter(torch.randn(config.text_positions, width) * 0.01)
        self.blocks = nn.ModuleList(ResidualBlock(width, config.text_heads) for _ in range(config.text_depth))
        self.norm_out = nn.LayerNorm(width)
        self.projection = nn.Linear(width, config.embedding, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.positions[: ids.shape[1]]  # (b, n, d)
        for block in self.blocks:
            x = block(x, causal)
        end = ids.argmax(dim=1)  # the end token has the largest id; what follows it cannot reach back to it
        return self.projection(self.norm_out(x[torch.arange(len(x), device=x.device), end]))  # (b, embedding)


# mean and standard deviation of the pixels of CLIP's training pictures, as published with the weights
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


class CLIP(nn.Module):
    """Scores how well pictures fit captions. Trained by `dalle.stages.clip`."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: CLIPConfig, tokenizer: CaptionTokenizer | None = None):
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.image = ImageTower(config)
        self.text = TextTower(config)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / config.initial_temperature)))
        for tower, width, depth in (
            (self.image, config.image_width, config.image_depth),
            (self.text, config.text_width, config.text_depth),
        ):
            _initialise(tower.blocks, width, depth)
        self.register_buffer("pixel_mean", rearrange(torch.tensor(PIXEL_MEAN), "c -> c 1 1"), persistent=False)
        self.register_buffer("pixel_std", rearrange(torch.tensor(PIXEL_STD), "c -> c 1 1"), persistent=False)

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied with: the learned inverse temperature, clipped."""
        scale = self.log_scale.exp()
        # the gradient passes the clip, or a scale that once exceeded it could never come back
        return scale + (scale.clamp(max=self.config.largest_scale) - scale).detach()

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What training needs: unit vectors of pictures and captions, (b, embedding) each, and the logits' scale."""
        return self.encode_image(pixels), self.encode_text(ids), self.scale

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(b, 3, image_size, image_size) in [0, 1] -> (b, embedding) unit vectors."""
        features = self.image((pixels - self.pixel_mean) / self.pixel_std)
        return F.normalize(features.float(), dim=-1)

    def encode_text(self, ids: Tensor) -> Tensor:
        """(b, n) ids as `tokenize` makes them, n <= text_positions -> (b, embedding) unit vectors."""
        return F.normalize(self.text(ids).float(), dim=-1)

    def tokenize(self, captions: list[str], truncate: bool = False) -> Tensor:
        """Start token, caption, end token, zeros: (b, text_positions) int64.

        Raises `ValueError` for a caption that does not fit, unless `truncate`, and when the model has no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError("this CLIP was built without a tokenizer; load one from a checkpoint folder")
        room = self.config.text_positions - 2
        rows = torch.zeros(len(captions), self.config.text_positions, dtype=torch.int64)
        for row, caption in zip(rows, captions, strict=True):
            ids = self.tokenizer.encode(caption)
            if len(ids) > room and not truncate:
                raise ValueError(f"the caption has {len(ids)} tokens, but CLIP reads at most {room}: {caption!r}")
            ids = [self.config.start_token, *ids[:room], self.config.end_token]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    def preprocess(self, images: list[Image.Image]) -> Tensor:
        """Shorter side to image_size (bicubic), centre crop: (b, 3, image_size, image_size) in [0, 1]."""
        return to_tensor([_square(image.convert("RGB"), self.config.image_size) for image in images])

    @torch.inference_mode()
    def score(self, images: list[Image.Image], captions: list[str], batch_size: int = 256) -> Tensor:
        """Cosine similarity of every picture with every caption: (images, captions), in [-1, 1], on the CPU."""
        device = self.log_scale.device
        texts = self.encode_text(self.tokenize(captions, truncate=True).to(device))
        chunks = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
        pictures = torch.cat([self.encode_image(self.preprocess(chunk).to(device)) for chunk in chunks])
        return (pictures @ texts.T).cpu()

    def save(self, folder: str | Path, meta: dict | None = None) -> None:
        """Write a checkpoint folder, tokenizer included, that `load` rebuilds the model from."""
        checkpoint.save_model(folder, "clip", self, self.config, meta, self.tokenizer)

    @classmethod
    def load(cls, folder: str | Path) -> "CLIP":
        """A model in eval mode from a checkpoint folder. Raises `CheckpointError` with what is wrong with it."""
        config, _ = checkpoint.read_config(folder, "clip")
        try:
            tokenizer = CaptionTokenizer.load(Path(folder) / checkpoint.TOKENIZER)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        model = cls(CLIPConfig(**config), tokenizer)
        checkpoint.load_weights(folder, model)
        return model.eval()


def _initialise(blocks: nn.ModuleList, width: int, depth: int) -> None:
    """Weights of the transformer blocks as OpenAI's code draws those of the text tower; biases 0."""
    residual = width**-0.5 * (2 * depth) ** -0.5
    for name, module in blocks.named_modules():
        if isinstance(module, nn.Linear):
            spread = {"qkv": width**-0.5, "expand": (2 * width) ** -0.5, "out": residual}[name.split(".")[-1]]
            nn.init.normal_(module.weight, std=spread)
            nn.init.zeros_(module.bias)


def _square(image: Image.Image, size: int) -> Image.Image:
    shorter = min(image.size)
    width, height = (round(side * size / shorter) for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
