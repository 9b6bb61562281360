"""Settings of sample.py: those of sampling, and what to draw, by which models, on which device and where to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dalle.sampling.attention_maps import AttentionConfig
from dalle.sampling.sampling_config import SamplingConfig


@dataclass(frozen=True)
class SampleConfig(AttentionConfig, SamplingConfig):
    """Options of sample.py; what they draw by default is one caption's best 8 of 64."""

    checkpoint: str = "outputs/demo"  # folder of dvae/, transformer/ and clip/, or a transformer's checkpoint
    caption: str = ""  # what to draw
    captions: list[str] = field(default_factory=list)  # several to draw, instead of `caption`
    captions_file: str | None = None  # text file of many to draw, one a line, instead of both
    image: str | None = None  # picture file to edit; its middle square is what the models see
    edit: Any = None  # what to do with the picture that image= names
    novelty: bool = False  # also look for the training picture nearest to each kept one
    first: int = 0  # number of the first candidate; 64 goes on where the first 64 ended
    precision: str = "auto"  # number format of the drawing: float32 | bfloat16; auto: as the device does best
    dvae: str | None = None  # folder of the dVAE, where it is not in the checkpoint or where that says
    clip: str | None = None  # folder of the CLIP to rank with, where it is not in the checkpoint
    device: str = "auto"  # "auto": cuda where there is one, else cpu
    deterministic: bool = False  # on a GPU the same bits each time, by slower kernels; a CPU's are the same anyway
    out: str | None = None  # folder to write; None: one of its own under outputs/samples/

    @property
    def looks(self) -> list[str]:
        """Options for which the transformer looks at whole pictures, as a user gives them."""
        judges = [f"rerank={self.rerank}"] if set(self.judges) - {"clip"} else []
        return [*judges, *(["attention=true"] if self.attention else [])]


def captions_to_draw(config: SampleConfig) -> list[str]:
    """The captions of whichever of the three options gives some.

    Raises:
        ValueError: none or several of the options are given, or the file cannot be read or holds no captions.
    """
    given = [bool(each) for each in (config.caption, config.captions, config.captions_file)]
    if sum(given) != 1:
        raise ValueError(
            'say what to draw, in one way: caption="a red circle", captions=["a red circle","a blue square"], '
            "or captions_file=<text file>"
        )
    if config.captions_file is not None:
        return read_captions(Path(config.captions_file))
    return config.captions or [config.caption]


def read_captions(path: Path) -> list[str]:
    """One caption a line; empty lines are passed over. Raises `ValueError` where there are none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # some editors put a mark before the first line
    except OSError as error:
        raise ValueError(f"the captions in {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the captions in {path} are not text in UTF-8: {error.reason} at byte {error.start}"
        ) from error
    captions = [line.strip() for line in lines if line.strip()]
    if not captions:
        raise ValueError(f"{path} holds no captions; write one on each line")
    return captions
