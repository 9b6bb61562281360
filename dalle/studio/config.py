"""Settings of `dalle studio`."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class StudioConfig:
    """Options of dalle studio, a web page and an HTTP API for one model; only this computer can reach it by default."""

    checkpoint: str = "drawings"  # folder of all three models, or of a transformer; drawings: comes with the package
    dvae: str | None = None  # folder of the dVAE, if it is neither in the checkpoint nor where the checkpoint says
    clip: str | None = None  # folder of the CLIP to rank with, if it is not in the checkpoint
    decoder: str | None = None  # folder of a diffusion decoder, which can be chosen for each drawing
    precision: str = "auto"  # number format of sampling: float32 | bfloat16; auto: bfloat16 on a GPU, else float32
    device: str = "auto"  # "auto": cuda if available, else cpu
    novelty: bool = False  # index the training images at the start, to show the nearest ones of each image
    caption_policy: str | None = None  # text file of words and /patterns/; captions with one of them are refused
    # address to listen on; others than 127.0.0.1, ::1 and localhost need a token in DALLE_STUDIO_TOKEN
    host: str = "127.0.0.1"
    port: int = 7860  # port to listen on; 0: a free one
    hosts: list[str] = field(default_factory=list)  # further names of this server that requests may use
    open: bool = False  # open the page in the browser
    queue: int = 16  # most drawings that wait; further ones are refused until one starts
    max_candidates: int = 64  # most candidates of a drawing
    max_images: int = 512  # most images that are held in memory; older ones are forgotten
    max_uploads: int = 64  # most uploaded images that are held in memory

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"port={self.port} is not a port; use 1 to {(1 << 16) - 1}, or 0 for a free one")
        for name in ("queue", "max_candidates", "max_images", "max_uploads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.max_images < self.max_candidates:
            raise ValueError(
                f"max_images={self.max_images} cannot hold one drawing of max_candidates={self.max_candidates}; "
                "raise the first or lower the second"
            )
