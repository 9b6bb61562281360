"""The data sets by name. A new one is a file with its config and its source, and a line in each table here."""

from collections.abc import Callable, Mapping
from typing import Any

from dalle.data import emoji
from dalle.data.blocks import BlocksConfig, BlocksSource
from dalle.data.coco import CocoConfig, CocoSource
from dalle.data.emoji import EmojiConfig, EmojiSource
from dalle.data.folder import FolderConfig, FolderSource
from dalle.data.source import Source
from dalle.data.webdataset import WebdatasetConfig, WebdatasetSource

CONFIGS: dict[str, type] = {
    "blocks": BlocksConfig,
    "emoji": EmojiConfig,
    "folder": FolderConfig,
    "coco": CocoConfig,
    "webdataset": WebdatasetConfig,
}
SOURCES: dict[str, Callable[[Any, str], Source]] = {
    "blocks": BlocksSource,
    "emoji": EmojiSource,
    "folder": FolderSource,
    "coco": CocoSource,
    "webdataset": WebdatasetSource,
}
ATTRIBUTIONS: dict[str, str] = {"emoji": emoji.ATTRIBUTION}  # to be shown wherever the pictures are


def read_config(written: Mapping[str, Any]) -> Any:
    """The config that `dataclasses.asdict` wrote, as in a checkpoint's meta. Raises ValueError for another's."""
    name = written.get("name")
    if name not in CONFIGS:
        raise ValueError(f"there is no data set {name!r}; choose one of {', '.join(CONFIGS)}")
    return CONFIGS[name](**written)


def open_source(config: Any, split: str) -> Source:
    """The split "train" or "val" (blocks: also "novel") of the data set that `config.name` names.

    `config` is one of `CONFIGS`. Raises ValueError for a name or split that does not exist, and what the
    source raises when its pictures are not there.
    """
    if config.name not in SOURCES:
        raise ValueError(f"there is no data set {config.name!r}; choose one of {', '.join(SOURCES)}")
    return SOURCES[config.name](config, split)
