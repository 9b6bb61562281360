"""Checkpoints that come with the package, found by name: checkpoint=drawings, init=drawings."""

from contextlib import suppress
from pathlib import Path

from dalle.checkpoint import CONFIG

KINDS = ("dvae", "clip", "transformer", "decoder")  # sub-folders of a pipeline, the names of all stages
FOLDER = Path(__file__).parent / "weights"


def checkpoint_folder(name: str | Path) -> Path:
    """Return the folder that `name` stands for: a path, or the name of a checkpoint that comes with the package.

    A model of the latter may follow its name: drawings/dvae.
    A checkpoint in an existing folder takes precedence over one that comes with the package; a data set of the same
    name does not.
    """
    folder = Path(name)
    with suppress(RuntimeError):  # ~ and the name of no user: a folder of this name
        folder = folder.expanduser()
    known = folder.parts and folder.parts[0] in bundled_names() and ".." not in folder.parts
    own = (folder / CONFIG).is_file() or any((folder / kind / CONFIG).is_file() for kind in KINDS)
    return FOLDER / folder if known and not own else folder


def bundled_names() -> list[str]:
    """Return the names of the checkpoints that come with the package."""
    return sorted(path.name for path in FOLDER.glob("*") if path.is_dir())
