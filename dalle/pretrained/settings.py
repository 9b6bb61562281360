"""What prepare.py can be told, whatever it prepares; each import adds its own, beside its code."""

from dataclasses import dataclass
from typing import Any


@dataclass
class PrepareConfig:
    """Options of prepare.py."""

    out: str | None = None  # folder to write, which must be new or empty; None: outputs/<name of what is prepared>
    data: Any = None  # data set to look over
    find: str | None = None  # picture file to look for in the training split of `data`, instead
    neighbours: int = 7  # training pictures to show beside it
    clip: str | None = None  # folder of a CLIP, to look for it by its features too
    sources: str | None = None  # checkpoint folder: tell what it was trained on; with out=, name every record in it
    dvae: str | None = None  # folder of a dVAE: encode the training pictures of `data` into its tokens, instead
    views: int = 4  # of each picture, by other crops; stage.views has to say the same
    transform: str = "transformer"  # of pictures before they are encoded; stage.transform has to say the same
    device: str = "auto"  # that encodes: auto | cpu | cuda | cuda:0
    vocabulary: int = 16_384  # entries of the BPE learned on the captions, at most; the paper's
    text_positions: int = 256  # a caption of as many tokens is too long, as one slot starts the text; the paper's
    limit: int | None = None  # records of each split to look at, evenly spaced; None: all
    workers: int = 2  # processes that open pictures; 0: this one
