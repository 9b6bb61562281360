"""Run notebooks and save their outputs: `make notebooks`, or `python notebooks/make.py [01_codebook ...]`.

Each numbered *.py in this folder is a notebook in jupytext's percent format. The .ipynb with outputs is written beside
it.
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
MOST = 300_000  # maximum bytes of a notebook, to keep the repository small
COLOURS = 96  # palette size of images
DOCS = FOLDER.parent / "docs"
SHOWN = {"05_fine_tuning": "fine-tuning.png"}  # notebook -> file in docs/ for its last picture


def main(names: list[str]) -> None:
    for script in sorted(FOLDER.glob("[0-9]*.py")):
        if not names or script.stem in names:
            print(f"{script.name} ...", end=" ", flush=True)
            print(f"{run(script) / 1000:.0f} kB", flush=True)


def run(script: Path) -> int:
    """Execute a notebook and write its .ipynb. Returns its size in bytes. Raises ValueError if it is too large."""
    notebook = jupytext.read(script)
    NotebookClient(notebook, resources={"metadata": {"path": str(FOLDER)}}).execute()
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # default ids are random and would differ at each run
        cell.metadata.pop("execution", None)  # timestamps differ at each run
        if "outputs" in cell:
            cell["outputs"] = [entry for entry in cell["outputs"] if entry.get("name") != "stderr"]  # progress bars
        for output in cell.get("outputs", []):
            if "data" in output:
                output["data"] = small(output["data"])
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    text = nbformat.writes(notebook, version=4) + "\n"
    if len(text.encode()) > MOST:
        raise ValueError(f"{script.stem}.ipynb has {len(text.encode()):,} bytes, and {MOST:,} are allowed")
    script.with_suffix(".ipynb").write_text(text, encoding="utf-8")
    if script.stem in SHOWN:
        (DOCS / SHOWN[script.stem]).write_bytes(last_picture(notebook))
    return len(text.encode())


def last_picture(notebook: Any) -> bytes:
    """Return the last picture of an executed notebook, a PNG."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return b64decode(pictures[-1])


def small(shown: dict[str, Any]) -> dict[str, Any]:
    """Reduce an output to one PNG with few colours. PIL images are otherwise stored as PNG and JPEG."""
    if "image/png" not in shown:
        return shown
    buffer = BytesIO()
    with Image.open(BytesIO(b64decode(shown["image/png"]))) as picture:
        picture.convert("RGB").quantize(COLOURS).save(buffer, "PNG", optimize=True)
    return {"image/png": b64encode(buffer.getvalue()).decode(), "text/plain": "a picture"}


if __name__ == "__main__":
    main(sys.argv[1:])
