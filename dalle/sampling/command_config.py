"""Settings of sample.py: those of sampling, and the captions, checkpoints, device and output folder."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dalle.sampling.attention_maps import AttentionConfig
from dalle.sampling.sampling_config import SamplingConfig

MAX_OFFSET = 2**62  # candidate numbers are 64-bit integers


@dataclass(frozen=True)
class SampleCommandConfig(AttentionConfig, SamplingConfig):
    """Options of sample.py; by default the best 8 of 64 images of one caption."""

    # auto: parallel where recorded figures expect it to be faster and float32 makes the images equal, else sequential |
    # sequential: one token per pass | parallel: the same images in fewer passes, for small batches
    decoding: str = field(default="auto", kw_only=True)
    checkpoint: str = "drawings"  # folder of all three models, or of a transformer; drawings: comes with the package
    caption: str = ""  # caption to sample images for
    captions: list[str] = field(default_factory=list)  # several captions, instead of `caption`
    captions_file: str | None = None  # text file with one caption per line, instead of both
    caption_policy: str | None = None  # text file of words and /patterns/; captions with one of them are refused
    image: str | None = None  # image file to edit; its centre square is used
    edit: Any = None  # edit of the image that image= names
    novelty: bool = False  # also find the training image nearest to each kept image
    candidate_offset: int = 0  # number of the first candidate; 64 continues after 64 candidates
    precision: str = "auto"  # number format of sampling: float32 | bfloat16; auto: bfloat16 on a GPU, else float32
    dvae: str | None = None  # folder of the dVAE, if it is neither in the checkpoint nor where the checkpoint says
    clip: str | None = None  # folder of the CLIP to rank with, if it is not in the checkpoint
    decoder: str | None = None  # folder of a diffusion decoder for the kept images; None: the dVAE's decoder
    sign: str | None = None  # PEM file with a private key and its certificates: signs each image (C2PA)
    device: str = "auto"  # "auto": cuda if available, else cpu
    deterministic: bool = False  # bitwise reproducible results on a GPU, with slower kernels; on a CPU they always are
    out: str | None = None  # output folder; jobs of a sweep have one each in it; None: a new one under outputs/samples/

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.candidate_offset <= MAX_OFFSET:
            raise ValueError(f"candidate_offset={self.candidate_offset} is out of range; use 0 to {MAX_OFFSET}")

    @property
    def options_on_model_grid(self) -> list[str]:
        """Options that need images of the model's grid, as the user types them."""
        return [*super().options_on_model_grid, *(["attention=true"] if self.attention else [])]


def check_unused_settings(config: SampleCommandConfig) -> None:
    """Raise `ValueError` for a setting that was changed and has no effect without another one, or beside it.

    `window` and `guess` pass with decoding=sequential, so that a sweep over `decoding` has the same other settings.
    """
    changed = {setting.name for setting in fields(config) if getattr(config, setting.name) not in (setting.default, [])}
    scored = "caption_likelihood" in config.score_weights
    ignored = {
        "attention_layer": None if config.attention else "needs attention=true",
        "decoder_steps": None if config.decoder else "needs a diffusion decoder: decoder=<folder>",
        "rerank_references": None if scored else "needs rerank=caption_likelihood, or a mixture with it",
        "memory": None if config.batch_size is None else f"has no effect with batch_size={config.batch_size}",
    }
    for name, reason in ignored.items():
        if reason and name in changed:
            raise ValueError(f"{name}={getattr(config, name)} {reason}; change that or leave {name} out")


def requested_captions(config: SampleCommandConfig) -> list[str]:
    """Return the captions of whichever of the three options is given.

    Raises:
        ValueError: none or several of the options are given, or the file cannot be read or holds no captions.
    """
    for caption in (config.caption, *config.captions):
        if any("\ud800" <= char <= "\udfff" for char in caption):
            raise ValueError(f"the caption {caption!r} is not UTF-8 text")
    given = [bool(option) for option in (config.caption, config.captions, config.captions_file)]
    if sum(given) != 1:
        raise ValueError(
            'give the captions in exactly one way: caption="a red circle", captions=["a red circle","a blue square"], '
            "or captions_file=<text file>"
        )
    if config.captions_file is not None:
        return read_captions(Path(config.captions_file))
    return config.captions or [config.caption]


def read_captions(path: Path) -> list[str]:
    """Read one caption per line, skipping empty ones. Raises `ValueError` if there are none, or on a read error."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # some editors write a byte order mark
    except OSError as error:
        raise ValueError(f"the captions in {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the captions in {path} are not UTF-8 text: {error.reason} at byte {error.start}") from error
    captions = [line.strip() for line in lines if line.strip()]
    if not captions:
        raise ValueError(f"{path} has no captions; write one per line")
    return captions
