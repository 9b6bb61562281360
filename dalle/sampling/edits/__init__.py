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
from dalle.sampling.canvas import Canvas, EncodedImage
from dalle.sampling.command_config import SampleCommandConfig
from dalle.sampling.edits.complete import CompleteConfig, complete
from dalle.sampling.edits.inpaint import InpaintConfig, inpaint
from dalle.sampling.edits.outpaint import OutpaintConfig, outpaint
from dalle.sampling.edits.remix import RemixConfig, remix
from dalle.sampling.edits.variations import VariationsConfig, variations


@dataclass(frozen=True)
class EditInput:
    """Input of an edit of sample.py: the encoded image, an encoder of further images, and the command's options."""

    original: EncodedImage
    encode: Callable[[Image.Image], EncodedImage]  # encodes a second image
    config: SampleCommandConfig


# each entry builds a canvas from the edit's config and its `EditInput`
EDITS: Registry[Canvas] = Registry(
    "edit",
    {
        "complete": Entry(lambda edit, task: complete(task.original, edit), CompleteConfig),
        "inpaint": Entry(
            lambda edit, task: inpaint(task.original, read_image(edit.mask, "edit.mask", keep_transparency=True), edit),
            InpaintConfig,
        ),
        "outpaint": Entry(lambda edit, task: outpaint(task.original, edit), OutpaintConfig),
        "variations": Entry(
            lambda edit, task: variations(
                task.original, edit, task.config.candidates, task.config.seed, task.config.candidate_offset
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
                task.config.candidate_offset,
            ),
            RemixConfig,
        ),
    },
)


def build_canvas(config: SampleCommandConfig, encode: Callable[[Image.Image], EncodedImage]) -> Canvas | None:
    """Build the canvas of `config.edit`, one of `EDITS`, for the image in `config.image`. Returns None without an edit.

    encode: converts an image to an `EncodedImage`, such as `DALLE.encode_image`.

    Raises:
        ValueError: an edit without an image or an image without an edit, a file that cannot be read, or an error of the
            edit itself.
    """
    edit, image = config.edit, config.image
    if edit is None:
        if image is not None:
            raise ValueError(f"image={image} needs an edit; add edit=<name>, one of {', '.join(EDITS)}")
        return None
    if image is None:
        raise ValueError(f"edit={edit.name} needs an image; add image=<file>")
    original = encode(read_image(image, "image"))
    return EDITS.for_config(edit).build(edit, EditInput(original, encode, config))


def read_image(path: str, option: str, keep_transparency: bool = False) -> Image.Image:
    """Read an image file as `decode_image`. Raises ValueError that names the `option` if it cannot be read."""
    if not path:
        raise ValueError(f"{option} is empty; set it to an image file")
    try:
        return read_image_file(Path(path).expanduser(), path, keep_transparency)
    except UnreadableRecord as error:
        raise ValueError(f"{option}={path} cannot be read as an image: {error.reason}") from error
