"""Configuration of the discrete VAE: sizes of its encoder and decoder, and the relaxation of its codes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dalle.checkpoint import count_children
from dalle.config_validation import check_sizes
from dalle.models.dvae.relaxation import RELAXATIONS


@dataclass(frozen=True)
class DVAEConfig:
    """Sizes of a discrete VAE; the defaults are the paper's model: 256x256 images, 8192 codes."""

    vocabulary: int = 8192  # codebook size K
    width: int = 256  # channels of the first encoder group; they double in each further group
    groups: int = 4  # groups of blocks; resolution is halved between groups, 2^(groups - 1) times lower in all
    blocks_per_group: int = 2  # residual blocks in each group
    decoder_input: int = 128  # channels of a code's embedding
    pool: str = "max"  # "max" | "average"; max gave the better ELBO (Appendix A.1)
    bottleneck_kernel: int = 1  # kernel of the convolutions next to the relaxation; 1 generalises better (Section 2.1)
    gain: float | None = None  # scale of the residual branches; None: 1 / (groups * blocks_per_group)^2 (Section 2.1)
    # gumbel_softmax: relaxed codes | straight_through: one-hot codes, relaxed gradients | vector_quantisation: VQ-VAE
    relaxation: str = "gumbel_softmax"

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.pool not in ("max", "average"):
            raise ValueError(f"pool={self.pool!r} is unknown; choose 'max' or 'average'")
        if self.relaxation not in RELAXATIONS:
            raise ValueError(f"relaxation={self.relaxation!r} is unknown; choose one of {', '.join(RELAXATIONS)}")
        if self.width % 4:
            raise ValueError(f"width={self.width} must be a multiple of 4: residual branches are a quarter as wide")
        if self.bottleneck_kernel % 2 == 0:
            raise ValueError(f"bottleneck_kernel={self.bottleneck_kernel} must be odd, to keep the grid's size")
        if self.vocabulary == 1:
            raise ValueError("vocabulary=1 must be at least 2: a single code tells nothing of an image")
        if self.gain is not None and not 0 < self.gain < math.inf:
            raise ValueError(f"gain={self.gain} must be a finite number above 0")
        if self.quantises_vectors and self.bottleneck_kernel != 1:
            raise ValueError(
                f"relaxation=vector_quantisation needs bottleneck_kernel=1, not {self.bottleneck_kernel}: the "
                "decoder's first layer is the codebook, a vector for each code"
            )

    @property
    def downsample(self) -> int:
        """Number of image pixels per code along each side."""
        return 2 ** (self.groups - 1)

    @property
    def quantises_vectors(self) -> bool:
        """True if the encoder outputs vectors to be quantised, rather than logits of the codes."""
        return self.relaxation == "vector_quantisation"

    @staticmethod
    def infer_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Infer the config's sizes from a dVAE's tensor shapes. Raises KeyError if they are not those of a dVAE."""
        code = shapes["decoder.input.weight"]
        return {
            "vocabulary": code[1],
            "decoder_input": code[0],
            "bottleneck_kernel": code[2],
            "width": shapes["encoder.input.weight"][0],
            "groups": count_children(shapes, "encoder.groups."),
            "blocks_per_group": count_children(shapes, "encoder.groups.0."),
        }

    @property
    def branch_gain(self) -> float:
        return 1 / (self.groups * self.blocks_per_group) ** 2 if self.gain is None else self.gain
