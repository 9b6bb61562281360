"""What sample.py can be told."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dalle.sampling.rerank import USUAL, RerankWeights


@dataclass
class SampleConfig:
    """Options of sample.py; what they draw by default is one caption's best 8 of 64."""

    checkpoint: str = "outputs/demo"  # folder of dvae/, transformer/ and clip/, or a transformer's checkpoint
    caption: str = ""  # what to draw
    captions: list[str] = field(default_factory=list)  # several to draw, instead of `caption`
    captions_file: str | None = None  # text file of many to draw, one a line, instead of both
    image: str | None = None  # picture file to edit; its middle square is what the models see
    edit: Any = None  # what to do with the picture that image= names
    candidates: int = 64  # pictures drawn for each caption; the paper draws 512
    keep: int = 8  # pictures kept, the best by `rerank`
    temperature: float = 1.0  # divides the logits; 1 is the paper's, 0 takes the most probable tokens
    top_k: int | None = None  # draw among this many most probable tokens only; the paper does not filter
    top_p: float | None = None  # draw among the most probable tokens that add up to this; the paper does not
    min_p: float | None = None  # draw among tokens at least this many times as probable as the likeliest
    # how much the caption's say is scaled; others than 1 need a model with caption_dropout; None: the checkpoint's own
    guidance: float | None = None
    rerank: str = "clip"  # what finds the best: clip, as in the paper | image_likelihood | caption_likelihood | mixture
    rerank_weights: RerankWeights = USUAL  # of a mixture
    # captions that caption_likelihood compares with; none: the empty one, if the model knows it, or those drawn beside
    rerank_references: list[str] = field(default_factory=list)
    attention: bool = False  # also draw where in each kept picture each word was attended to
    attention_layer: int | None = None  # in this layer, from 1; None: in all on average
    novelty: bool = False  # also look for the training picture nearest to each kept one
    seed: int = 0  # candidate i depends on (seed, i) alone
    first: int = 0  # number of the first candidate; 64 goes on where the first 64 ended
    batch_size: int | None = None  # pictures decoded at a time, for speed and memory only; None: what memory allows
    memory: str = "auto"  # GB that drawing may take beside the models; auto: what is free when it starts
    precision: str = "auto"  # number format of the drawing: float32 | bfloat16; auto: as the device does best
    dvae: str | None = None  # folder of the dVAE, where it is not in the checkpoint or where that says
    clip: str | None = None  # folder of the CLIP to rank with, where it is not in the checkpoint
    device: str = "auto"  # "auto": cuda where there is one, else cpu
    deterministic: bool = False  # on a GPU the same bits each time, by slower kernels; a CPU's are the same anyway
    out: str | None = None  # folder to write; None: one of its own under outputs/samples/


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
