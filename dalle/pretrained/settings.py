"""Options common to all tasks of prepare.py; each import defines further options beside its code."""

from dataclasses import dataclass
from typing import Any


@dataclass
class PrepareConfig:
    """Options of prepare.py."""

    out: str | None = None  # output folder, which must be new or empty; None: outputs/<name of what is prepared>
    data: Any = None  # data set to survey
    find: str | None = None  # image file to search for in the training split of `data`, instead of a survey
    neighbours: int = 7  # most similar training images to show for `find`
    clip: str | None = None  # folder of a CLIP: `find` also compares its features
    sources: str | None = None  # checkpoint folder: show its training data; with out=, also list every record
    dvae: str | None = None  # folder of a dVAE: encode the training images of `data` to tokens, instead of a survey
    views: int = 4  # crops to encode of each image; must equal stage.views
    transform: str = "transformer"  # transform of images before encoding; must equal stage.transform
    device: str = "auto"  # device for encoding: auto | cpu | cuda | cuda:0
    vocabulary: int = 16_384  # maximum vocabulary size of the BPE trained on the captions; default: the paper's
    text_positions: int = 256  # captions of this many tokens or more are too long (one is the start); the paper's
    limit: int | None = None  # records of each split to examine, evenly spaced; None: all
    workers: int = 2  # processes that load images; 0: load in this process
