"""Options of prepare.py: one dataclass for each task. Their fields are all top-level settings."""

from dataclasses import dataclass
from typing import Any


@dataclass
class SurveyConfig:
    """Options of the survey of a data set: the default where `data=` is given and nothing else is asked for."""

    vocabulary: int = 16_384  # maximum vocabulary size of the BPE trained on the captions; default: the paper's
    text_positions: int = 256  # captions of this many tokens or more are too long (one is the start); the paper's
    limit: int | None = None  # records of each split to examine, evenly spaced; None: all


@dataclass
class FindConfig:
    """Options of the search for an image in the training split."""

    find: str | None = None  # image file to search for in the training split of `data`, instead of a survey
    neighbours: int = 7  # most similar training images to show for `find`
    clip: str | None = None  # folder of a CLIP: `find` also compares its features, `export` also copies it


@dataclass
class EncodeConfig:
    """Options of encoding the training split into tokens."""

    dvae: str | None = None  # folder of a dVAE: encode the training images of `data` to tokens, instead of a survey
    crops: int = 4  # crops to encode of each image; must equal stage.crops
    transform: str = "transformer"  # transform of images before encoding; must equal stage.transform
    device: str = "auto"  # device for encoding: auto | cpu | cuda | cuda:0


@dataclass
class ExportConfig:
    """Options of exporting a checkpoint for publication."""

    export: str | None = None  # checkpoint folder to copy without training states, in small files
    dtype: str = "bfloat16"  # of the exported weights: float32 | bfloat16; a dVAE stays in float32
    max_shard_mb: int = 15  # size of an exported weights file in megabytes; a larger tensor has its own
    push: str | None = None  # user/name of a repository on the Hugging Face Hub to upload the export to
    revision: str | None = None  # branch of `push`; null: the main one
    private: bool = False  # create the repository of `push` as a private one
    card: str | None = None  # Markdown file to append to the model card: limits, samples


@dataclass
class PrepareConfig(ExportConfig, EncodeConfig, FindConfig, SurveyConfig):
    """Options of prepare.py."""

    # output folder, new or empty; with `dvae`, also an unfinished cache of the same settings, which is completed;
    # None: outputs/<name of what is prepared>
    out: str | None = None
    data: Any = None  # data set to survey
    sources: str | None = None  # checkpoint folder: show its training data; with out=, also list every record
    datasheet: str | None = None  # with `sources`: folder for a datasheet of all its models, as Markdown and Croissant
    workers: int = 2  # processes that load images; 0: load in this process


def with_import(options: type) -> type:
    """Return PrepareConfig with the options of an importer at the same level, as import=openai-dvae encoder=... ."""
    return dataclass(type(options.__name__, (options, PrepareConfig), {"__doc__": options.__doc__}))
