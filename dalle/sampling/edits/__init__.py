"""Edits by name: edit=<name> of sample.py. A new one is a file and a line here.

An edit turns pictures into a canvas: which tokens are kept, which are drawn. It knows nothing of how.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dalle.data.picture_file import read_picture
from dalle.data.source import UnreadableRecord
from dalle.registry import Entry, Registry
from dalle.sampling.canvas import Canvas, Original
from dalle.sampling.edits.complete import CompleteConfig, complete
from dalle.sampling.edits.inpaint import InpaintConfig, inpaint
from dalle.sampling.edits.outpaint import OutpaintConfig, outpaint
from dalle.sampling.edits.remix import RemixConfig, remix
from dalle.sampling.edits.variations import VariationsConfig, variations
from dalle.sampling.settings import SampleConfig


@dataclass(frozen=True)
class Task:
    """Input of an edit of sample.py."""

    original: Original
    encode: Callable[[Image.Image], Original]  # for a second picture
    config: SampleConfig


# built from the edit's options and the task, into a canvas
EDITS: Registry[Canvas] = Registry(
    "edit",
    {
        "complete": Entry(lambda edit, task: complete(task.original, edit), CompleteConfig),
        "inpaint": Entry(
            lambda edit, task: inpaint(task.original, read_image(edit.mask, "edit.mask"), edit), InpaintConfig
        ),
        "outpaint": Entry(lambda edit, task: outpaint(task.original, edit), OutpaintConfig),
        "variations": Entry(
            lambda edit, task: variations(
                task.original, edit, task.config.candidates, task.config.seed, task.config.first
            ),
            VariationsConfig,
        ),
        "remix": Entry(
            lambda edit, task: remix(
                task.original,
                task.encode(read_image(edit.other, "edit.other")),
                edit,
                task.config.candidates,
                task.config.seed,
                task.config.first,
            ),
            RemixConfig,
        ),
    },
)


def canvas_of(config: SampleConfig, encode: Callable[[Image.Image], Original]) -> Canvas | None:
    """Make the canvas of `config.edit`, one of `EDITS`, and the picture in `config.image`; None without an edit.

    encode: turns a picture into what the models see, as `DALLE.original`.

    Raises:
        ValueError: an edit without a picture or the other way round, a file that cannot be read, pictures larger than
            the model's grid with options that look at whole ones, or what the edit raises.
    """
    edit, image = config.edit, config.image
    if edit is None:
        if image is not None:
            raise ValueError(f"image={image} is for edits: say which, as edit=complete; there are {', '.join(EDITS)}")
        return None
    if image is None:
        raise ValueError(f"edit={edit.name} changes a picture: say which with image=<file>")
    original = encode(read_image(image, "image"))
    canvas = EDITS.of(edit).build(edit, Task(original, encode, config))
    canvas.check_looks(len(original.tokens), config.looks)
    return canvas


def read_image(path: str, option: str) -> Image.Image:
    """Read the picture in a file, as RGB and upright; ValueError naming the `option` where it cannot be read."""
    if not path:
        raise ValueError(f"{option} is empty: set it to a picture file")
    try:
        return read_picture(Path(path).expanduser(), path)
    except UnreadableRecord as problem:
        raise ValueError(f"{option}={path} cannot be read as a picture: {problem.reason}") from problem
