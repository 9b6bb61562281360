"""Registry of edits: edit=<name> of sample.py. To add an edit, add a file and an entry here.

An edit converts images to a canvas, which says which tokens are kept and which are sampled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dalle.data.image_file import read_image_file
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
    encode: Callable[[Image.Image], Original]  # encodes a second image
    config: SampleConfig


# each entry builds a canvas from the edit's options and the task
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
    """Build the canvas of `config.edit`, one of `EDITS`, for the image in `config.image`. Returns None without an edit.

    encode: converts an image to an `Original`, such as `DALLE.original`.

    Raises:
        ValueError: an edit without an image or an image without an edit, a file that cannot be read, images larger than
            the model's grid with options that need that grid, or an error of the edit itself.
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
    """Read an image file as upright RGB. Raises ValueError that names the `option` if it cannot be read."""
    if not path:
        raise ValueError(f"{option} is empty: set it to a picture file")
    try:
        return read_image_file(Path(path).expanduser(), path)
    except UnreadableRecord as problem:
        raise ValueError(f"{option}={path} cannot be read as a picture: {problem.reason}") from problem
