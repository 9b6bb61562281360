"""Runs notebooks and keeps what they show: `make notebooks`, or `python notebooks/make.py [01_codebook ...]`.

Each *.py here is a notebook in jupytext's percent format; beside it comes the .ipynb with its outputs.
"""

import sys
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
MOST = 300_000  # bytes, so that the repository stays small
COLOURS = 96  # of a picture


def main(names: list[str]) -> None:
    for script in sorted(FOLDER.glob("[0-9]*.py")):
        if not names or script.stem in names:
            print(f"{script.name} ...", end=" ", flush=True)
            print(f"{run(script) / 1000:.0f} kB", flush=True)


def run(script: Path) -> int:
    """Execute one and write its .ipynb; gives its size in bytes. Raises ValueError where that is too large."""
    notebook = jupytext.read(script)
    NotebookClient(notebook, resources={"metadata": {"path": str(FOLDER)}}).execute()
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # random ones would differ at each run
        cell.metadata.pop("execution", None)  # times
        for output in cell.get("outputs", []):
            if "data" in output:
                output["data"] = small(output["data"])
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    text = nbformat.writes(notebook, version=4) + "\n"
    if len(text.encode()) > MOST:
        raise ValueError(f"{script.stem}.ipynb has {len(text.encode()):,} bytes, and {MOST:,} are allowed")
    script.with_suffix(".ipynb").write_text(text, encoding="utf-8")
    return len(text.encode())


def small(shown: dict[str, Any]) -> dict[str, Any]:
    """An output with its picture once, as a PNG of few colours: a PIL picture shows itself as a JPEG as well."""
    if "image/png" not in shown:
        return shown
    buffer = BytesIO()
    with Image.open(BytesIO(b64decode(shown["image/png"]))) as picture:
        picture.convert("RGB").quantize(COLOURS).save(buffer, "PNG", optimize=True)
    return {"image/png": b64encode(buffer.getvalue()).decode(), "text/plain": "a picture"}


if __name__ == "__main__":
    main(sys.argv[1:])
