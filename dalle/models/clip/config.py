"""Configuration of CLIP: sizes of its encoders, and the preprocessing of images and captions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from dalle.checkpoint import count_children
from dalle.config_validation import check_sizes
from dalle.models.clip.resnet import CELL
from dalle.pretrained.key_mapping import MLP_IN

# mean and standard deviation of the pixels of CLIP's training images, as published with the weights
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
# settings that an image encoder does not use, by its name
UNUSED_SETTINGS = {
    "vit": {"image_blocks"},
    "resnet": {"patch", "image_depth", "image_mlp", "image_activation", "image_eps"},
}


@dataclass(frozen=True)
class CLIPConfig:
    """Sizes and preprocessing of a CLIP model; the defaults are those of the published ViT-B/32."""

    image_size: int = 224  # side of the input images in pixels
    image_encoder: str = "vit"  # image encoder: "vit" | "resnet"
    patch: int = 32  # vit: side of a patch in pixels
    image_width: int = 768  # vit: of the hidden states; resnet: channels of the first stage
    image_depth: int = 12  # vit: number of layers
    image_blocks: tuple[int, ...] = (3, 4, 6, 3)  # resnet: number of residual blocks in each stage
    image_heads: int = 12  # attention heads; resnet: of the attention pooling
    image_mlp: int | None = None  # vit: hidden width of the MLPs; None: 4 * image_width
    image_activation: str = "quick_gelu"  # vit: activation of the MLPs, "quick_gelu" | "gelu"
    image_eps: float = 1e-5  # vit: epsilon of the layer norms
    text_vocabulary: int = 49_408  # number of token ids, including the start and end tokens
    text_positions: int = 77  # maximum length of a caption in tokens, including the start and end tokens
    text_width: int = 512  # of the text encoder's hidden states
    text_depth: int = 12  # number of layers
    text_heads: int = 8  # attention heads of each layer
    text_mlp: int | None = None  # hidden width of the MLPs; None: 4 * text_width
    text_activation: str = "quick_gelu"  # activation of the MLPs, "quick_gelu" | "gelu"
    text_eps: float = 1e-5  # epsilon of the layer norms
    start_id: int | None = None  # id of the start token; None: the last id but one
    end_id: int | None = None  # id of the end token; the text feature is read at the first one; None: the last id
    embedding: int = 512  # dimensions of the shared embedding space of images and captions
    initial_temperature: float = 0.07  # of the softmax, before training (CLIP paper, Section 2.5)
    max_logit_scale: float = 100.0  # maximum of the logit scale, for stability (Section 2.5)
    shorter_side: int | None = None  # images are resized to this before the crop; None: image_size
    resample: str = "bicubic"  # Pillow's name of the resampling filter
    crop_rounding: str = "down"  # rounding of the centre crop's offset: "down" | "even", as in torchvision
    pixel_mean: tuple[float, ...] = PIXEL_MEAN  # subtracted from red, green and blue
    pixel_std: tuple[float, ...] = PIXEL_STD  # the result is divided by it
    tokenizer: str = "dalle"  # "dalle": trained on our captions | "openai" | "huggingface": published with the weights

    def __post_init__(self) -> None:
        check_sizes(self)
        for name in ("image_blocks", "pixel_mean", "pixel_std"):  # JSON has lists instead of tuples
            object.__setattr__(self, name, tuple(getattr(self, name)))
        choices_by_name = {
            "image_encoder": ("vit", "resnet"),
            "resample": tuple(resampling.name.lower() for resampling in Image.Resampling),
            "crop_rounding": ("down", "even"),
            "tokenizer": ("dalle", "openai", "huggingface"),
        }
        for name, choices in choices_by_name.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(choices)}")
        for name in ("start_id", "end_id"):
            if (value := getattr(self, name)) is not None and not 0 <= value < self.text_vocabulary:
                raise ValueError(f"{name}={value} is none of the text_vocabulary={self.text_vocabulary} ids")
        if self.start_token == self.end_token:
            raise ValueError(f"start_id and end_id are both {self.end_token}; the end token needs an id of its own")
        for name in ("text_vocabulary", "text_positions"):
            if getattr(self, name) < 3:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 3: start token, a word, end token")
        for name in ("image_mlp", "text_mlp"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1; leave it out for 4 times the width")
        for name in ("image_eps", "text_eps", "initial_temperature", "max_logit_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be a finite number above 0")
        if len(self.pixel_mean) != 3 or not all(map(math.isfinite, self.pixel_mean)):
            raise ValueError(f"pixel_mean={self.pixel_mean} must be three finite numbers")
        if len(self.pixel_std) != 3 or not all(0 < std < math.inf for std in self.pixel_std):
            raise ValueError(f"pixel_std={self.pixel_std} must be three finite numbers above 0")
        if self.text_width % self.text_heads:
            raise ValueError(f"text_width={self.text_width} must be a multiple of text_heads={self.text_heads}")
        if self.image_encoder == "vit" and self.image_width % self.image_heads:
            raise ValueError(f"image_width={self.image_width} must be a multiple of image_heads={self.image_heads}")
        if self.image_encoder == "resnet" and (len(self.image_blocks) != 4 or min(self.image_blocks) < 1):
            raise ValueError(
                f"image_blocks={self.image_blocks} must be four numbers of at least 1, the blocks of each stage"
            )
        if self.image_encoder == "vit" and self.image_size % self.patch:
            raise ValueError(f"image_size={self.image_size} must be a multiple of patch={self.patch}")
        if self.shorter_side is not None and not self.image_size <= self.shorter_side <= 16 * self.image_size:
            raise ValueError(
                f"shorter_side={self.shorter_side} must be at least image_size={self.image_size}, at most 16 times it"
            )

    @staticmethod
    def infer_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Infer the config's sizes from a CLIP's tensor shapes. Raises KeyError if they are not those of a CLIP."""
        vocabulary, width = shapes["text.embedding.weight"]
        sizes: dict[str, Any] = {
            "text_vocabulary": vocabulary,
            "text_width": width,
            "text_positions": shapes["text.positions"][0],
            "text_depth": count_children(shapes, "text.blocks."),
            "text_mlp": shapes[f"text.blocks.0{MLP_IN}weight"][0],
            "embedding": shapes["text.projection.weight"][0],
        }
        if "image.class_token" in shapes:
            patch = shapes["image.patchify.weight"][2]
            sizes |= {
                "image_encoder": "vit",
                "image_size": patch * math.isqrt(shapes["image.positions"][0] - 1),
                "patch": patch,
                "image_width": shapes["image.class_token"][0],
                "image_depth": count_children(shapes, "image.blocks."),
                "image_mlp": shapes[f"image.blocks.0{MLP_IN}weight"][0],
            }
        else:
            stages = count_children(shapes, "image.stages.")
            sizes |= {
                "image_encoder": "resnet",
                "image_width": shapes["image.stages.0.0.reduce.conv.weight"][0],
                "image_blocks": tuple(count_children(shapes, f"image.stages.{stage}.") for stage in range(stages)),
                "image_size": CELL * math.isqrt(shapes["image.pool.positions"][0] - 1),
            }
        return sizes

    @property
    def start_token(self) -> int:
        return self.text_vocabulary - 2 if self.start_id is None else self.start_id

    @property
    def end_token(self) -> int:
        return self.text_vocabulary - 1 if self.end_id is None else self.end_id
