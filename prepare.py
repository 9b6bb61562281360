"""Prepare what training and sampling start from: python prepare.py import=openai-dvae encoder=... decoder=..."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dalle.config import verb
from dalle.interop import IMPORTS
from dalle.interop.settings import PrepareConfig
from dalle.models.clip import CLIP
from dalle.models.dvae import DiscreteVAE

MODELS = {"dvae": DiscreteVAE, "clip": CLIP}


@verb("prepare")
def main(config: PrepareConfig) -> None:
    name = next((name for name, (settings, _) in IMPORTS.items() if type(config) is settings), None)
    if name is None:
        raise ValueError(f"say what to prepare: {' or '.join(f'import={name}' for name in IMPORTS)}")
    import_model(name, config)


def import_model(name: str, config: PrepareConfig) -> None:
    """Turn somebody else's model into a checkpoint folder of ours."""
    folder = Path(config.out or Path("outputs", name)).expanduser()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: choose another out=, or move away what is there")
    _, read = IMPORTS[name]
    published = read(config)
    model = MODELS[published.kind].from_published(published)
    with new_folder(folder) as beside:
        model.save(beside, published.meta)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{folder}: {published.kind}, {count:,} parameters")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `folder`, new or empty, if the block ends well and else vanishes."""
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)  # of a run that was killed
    beside.mkdir(parents=True)
    try:
        yield beside
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


if __name__ == "__main__":
    main()
