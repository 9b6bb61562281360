"""Strip of a run's previews: the same images or captions after more and more updates, side by side.

    python -m dalle.training.preview_strip outputs/dvae/my-dvae

Training writes it too, when it ends: <run>/previews/strip.png.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from dalle.atomic_files import atomic_write
from dalle.image_grid import Cell, GridRow, image_grid

STRIP = "strip.png"
MAX_PREVIEWS = 12  # previews in a strip; of more, the first, the last, and others at equal distances
MAX_TILE = 512  # pixels of the longer side of each preview


def preview_strip(folder: Path, title: str = "") -> Image.Image | None:
    """Join the previews `step-*.png` in `folder` into one image, in order; None if there are fewer than two."""
    steps = {
        int(match[1]): path for path in folder.glob("step-*.png") if (match := re.fullmatch(r"step-(\d+)", path.stem))
    }
    if len(steps) < 2:
        return None
    cells = []
    for step in spread(sorted(steps), MAX_PREVIEWS):
        with Image.open(steps[step]) as image:
            cells.append(Cell(image.convert("RGB"), f"step {step:,}"))
    tile = min(MAX_TILE, max(side for cell in cells if cell.image is not None for side in cell.image.size))
    return image_grid([GridRow(cells)], columns=len(cells), tile=tile, title=title)


def write_strip(folder: Path, title: str = "") -> Path | None:
    """Write the strip of the previews in `folder` to its strip.png; returns the path, None without two previews."""
    strip = preview_strip(folder, title)
    if strip is None:
        return None
    with atomic_write(folder / STRIP) as temporary:
        strip.save(temporary, format="PNG")
    return folder / STRIP


def spread(numbers: Sequence[int], count: int) -> list[int]:
    """Choose at most `count` of `numbers` at equal distances, with the first and the last."""
    if len(numbers) <= count:
        return list(numbers)
    return [numbers[round(index * (len(numbers) - 1) / (count - 1))] for index in range(count)]


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m dalle.training.preview_strip <run folder> ...", file=sys.stderr)
        return 2
    for run in map(Path, arguments):
        path = write_strip(run / "previews", title=run.name)
        print(path or f"{run / 'previews'} has fewer than two previews, step-*.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
