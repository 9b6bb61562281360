"""What a CLIP is: the sizes of its towers, and how pictures and captions are prepared for it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from dalle.checkpoint import count_children
from dalle.models.clip.resnet import CELL
from dalle.models.sizes import check_sizes
from dalle.pretrained.names import MLP_IN

# mean and standard deviation of the pixels of CLIP's training pictures, as published with the weights
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class CLIPConfig:
    """Sizes of a CLIP model; the defaults are those of the published ViT-B/32."""

    image_size: int = 224  # side of the pictures in pixels
    image_tower: str = "vit"  # "vit" | "resnet"
    patch: int = 32  # vit: side of a patch in pixels
    image_width: int = 768  # resnet: of the first stage
    image_depth: int = 12  # vit
    image_blocks: tuple[int, ...] = (3, 4, 6, 3)  # resnet: how many in each stage
    image_heads: int = 12  # resnet: of the attention at its end
    image_mlp: int | None = None  # vit: width inside the MLPs; None: 4 image_width
    image_activation: str = "quick_gelu"  # vit: "quick_gelu" | "gelu"
    image_eps: float = 1e-5  # vit: of the layer norms
    text_vocabulary: int = 49_408  # ids of captions, the start and end tokens included
    text_positions: int = 77  # the start and end tokens included
    text_width: int = 512  # of the text tower's states
    text_depth: int = 12  # layers
    text_heads: int = 8  # of the attention in each
    text_mlp: int | None = None  # None: 4 text_width
    text_activation: str = "quick_gelu"  # "quick_gelu" | "gelu"
    text_eps: float = 1e-5  # of the layer norms
    start_id: int | None = None  # None: the last id but one
    end_id: int | None = None  # where it stands first, the text tower is read; None: the largest id
    embedding: int = 512  # dimensions of the space that pictures and captions share
    initial_temperature: float = 0.07  # CLIP paper, Section 2.5
    largest_scale: float = 100.0  # the logits' scale is clipped here, for stability (Section 2.5)
    shorter_side: int | None = None  # pictures are scaled to this before the crop; None: image_size
    resample: str = "bicubic"  # how they are scaled, by Pillow's names
    crop_rounding: str = "down"  # half a pixel of the centre crop's offset goes "down" | "even": as in torchvision
    pixel_mean: tuple[float, ...] = PIXEL_MEAN  # of red, green and blue, which is taken off
    pixel_std: tuple[float, ...] = PIXEL_STD  # by which they are then divided
    tokenizer: str = "dalle"  # "dalle": learned from our captions | "openai" | "huggingface": as published by them

    def __post_init__(self) -> None:
        check_sizes(self)
        for name in ("image_blocks", "pixel_mean", "pixel_std"):  # JSON has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        known = {
            "image_tower": ("vit", "resnet"),
            "resample": tuple(each.name.lower() for each in Image.Resampling),
            "crop_rounding": ("down", "even"),
            "tokenizer": ("dalle", "openai", "huggingface"),
        }
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(choices)}")
        for name in ("start_id", "end_id"):
            if (value := getattr(self, name)) is not None and not 0 <= value < self.text_vocabulary:
                raise ValueError(f"{name}={value} is none of the text_vocabulary={self.text_vocabulary} ids")
        for name in ("image_eps", "text_eps", "initial_temperature", "largest_scale"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        if len(self.pixel_mean) != 3 or len(self.pixel_std) != 3 or min(self.pixel_std) <= 0:
            raise ValueError("pixel_mean and pixel_std are three numbers each, those of pixel_std above 0")
        if self.image_tower == "vit" and self.image_size % self.patch:
            raise ValueError(f"image_size={self.image_size} must be a multiple of patch={self.patch}")
        if self.shorter_side is not None and not self.image_size <= self.shorter_side <= 16 * self.image_size:
            raise ValueError(
                f"shorter_side={self.shorter_side} must be at least image_size={self.image_size}, at most 16 times it"
            )

    @staticmethod
    def sizes_in(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """The sizes that the shapes of a CLIP's tensors tell. Raises KeyError for tensors that are of none."""
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
                "image_tower": "vit",
                "image_size": patch * math.isqrt(shapes["image.positions"][0] - 1),
                "patch": patch,
                "image_width": shapes["image.class_token"][0],
                "image_depth": count_children(shapes, "image.blocks."),
                "image_mlp": shapes[f"image.blocks.0{MLP_IN}weight"][0],
            }
        else:
            stages = count_children(shapes, "image.stages.")
            sizes |= {
                "image_tower": "resnet",
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
