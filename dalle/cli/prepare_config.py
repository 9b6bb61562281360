"""Options of prepare.py: one dataclass for each thing that it prepares, all of them set at the top level."""

from dataclasses import dataclass
from typing import Any


@dataclass
class SurveyConfig:
    """Options of the survey of a data set: the default where `data=` is given and nothing else is asked for."""

    vocabulary: int = 16_384  # entries of the BPE learned on the captions, at most; the paper's
    text_positions: int = 256  # a caption of as many tokens is too long, as one slot starts the text; the paper's
    limit: int | None = None  # records of each split to look at, evenly spaced; None: all


@dataclass
class FindConfig:
    """Options of the search for a picture in the training split."""

    find: str | None = None  # picture file to look for in the training split of `data`, instead of a survey
    neighbours: int = 7  # training pictures to show beside it
    clip: str | None = None  # folder of a CLIP, to look for it by its features too


@dataclass
class EncodeConfig:
    """Options of encoding the training split into tokens."""

    dvae: str | None = None  # folder of a dVAE: encode the training pictures of `data` into its tokens, instead
    views: int = 4  # of each picture, by other crops; stage.views has to say the same
    transform: str = "transformer"  # of pictures before they are encoded; stage.transform has to say the same
    device: str = "auto"  # that encodes: auto | cpu | cuda | cuda:0


@dataclass
class PrepareConfig(EncodeConfig, FindConfig, SurveyConfig):
    """Options of prepare.py."""

    out: str | None = None  # folder to write, which must be new or empty; None: outputs/<name of what is prepared>
    data: Any = None  # data set to look over
    sources: str | None = None  # checkpoint folder: list what it was trained on; with out=, name every record in it
    workers: int = 2  # processes that open pictures; 0: this one


def with_import(options: type) -> type:
    """Return PrepareConfig with the options of an importer at the same level, as import=openai-dvae encoder=... ."""
    return dataclass(type(options.__name__, (options, PrepareConfig), {"__doc__": options.__doc__}))
