"""Registry of the data sets. To add one, write a file with its config and its source, and add an entry here."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from dalle.data import emoji
from dalle.data.blocks import BlocksConfig, BlocksSource
from dalle.data.coco import CocoConfig, CocoSource
from dalle.data.drawings.config import DrawingsConfig
from dalle.data.drawings.source import ATTRIBUTION as OF_DRAWINGS
from dalle.data.drawings.source import DrawingsSource
from dalle.data.emoji import EmojiConfig, EmojiSource
from dalle.data.files import FileSource
from dalle.data.folder import FolderConfig, FolderSource
from dalle.data.source import Source
from dalle.data.webdataset import WebdatasetConfig, WebdatasetSource
from dalle.registry import Entry, Registry

# a source is built from its config and the name of a split; the note is the attribution to show with its images
DATA_SETS: Registry[Source] = Registry(
    "data set",
    {
        "blocks": Entry(BlocksSource, BlocksConfig),
        "emoji": Entry(EmojiSource, EmojiConfig, note=emoji.ATTRIBUTION),
        "drawings": Entry(DrawingsSource, DrawingsConfig, note=OF_DRAWINGS),
        "folder": Entry(FolderSource, FolderConfig),
        "coco": Entry(CocoSource, CocoConfig),
        "webdataset": Entry(WebdatasetSource, WebdatasetConfig),
    },
)


def config_from_dict(settings: Mapping[str, Any]) -> Any:
    """Rebuild a config from the dict of `dataclasses.asdict`, which a checkpoint has in its meta.

    Raises ValueError for a data set or settings that are unknown.
    """
    config = DATA_SETS.lookup(settings.get("name")).config
    assert config is not None
    if unknown := list(_unknown_settings(settings, config())):
        raise ValueError(
            f"data={settings['name']} has no setting {', '.join(unknown)} in this version: the checkpoint may be of a "
            "newer version, so update the code"
        )
    return config(**settings)


def _unknown_settings(settings: Mapping[str, Any], default: Any, prefix: str = "data.") -> Iterator[str]:
    """Yield the names in `settings` that the dataclass of `default` and those within it do not have."""
    field_names = {field.name for field in fields(default)}
    for name, value in settings.items():
        if name not in field_names:
            yield f"{prefix}{name}"
        elif isinstance(value, Mapping) and is_dataclass(nested := getattr(default, name)):
            yield from _unknown_settings(value, nested, f"{prefix}{name}.")


def open_source(config: Any, split: str) -> Source:
    """Open a split of the data set `config.name`: "train" or "val"; blocks and drawings have further ones.

    Raises ValueError for a name or split that does not exist, and whatever the source raises if its images are missing.
    """
    return DATA_SETS.lookup(config.name).build(config, split)


def open_splits(config: Any, splits: Iterable[str]) -> dict[str, Source]:
    """Open several splits of a data set, by name. Sources of files list their records once for all of them.

    Raises ValueError as `open_source` does.
    """
    build = DATA_SETS.lookup(config.name).build
    if isinstance(build, type) and issubclass(build, FileSource):
        return {**build.open_splits(config, splits)}
    return {split: build(config, split) for split in splits}


def captioned_only(config: Any) -> Any:
    """Return the config with images without captions left out, for CLIP and for metrics, which need pairs."""
    return replace(config, allow_missing_captions=False) if getattr(config, "allow_missing_captions", False) else config


def attribution(name: Any) -> str:
    """Return the attribution to show with images of a data set; "" if none is required, or the data set is unknown."""
    return DATA_SETS[name].note if isinstance(name, str) and name in DATA_SETS else ""
