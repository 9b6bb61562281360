"""Figures of the documentation: each equals the output of its script."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageColor

from dalle.models.transformer.patterns import Column, Convolutional, Pattern, Row, sequence_attend_mask

DOCS = Path(__file__).parents[1] / "docs"
TRANSPOSED = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]
PANELS: list[tuple[Pattern, list[int]]] = [
    (Row(), list(range(16))),
    (Column(), list(range(16))),
    (Column(), TRANSPOSED),
    (Convolutional(3), list(range(16))),
]


def test_loss_curves_of_the_bundled_model_are_plotted_and_end_as_the_page_says(monkeypatch, tmp_path, capsys):
    figure = tmp_path / "curves.png"
    runs = [str(DOCS / "losses" / "drawings"), "--out", str(figure)]
    monkeypatch.setattr(sys, "argv", ["loss_curves.py", *runs])
    runpy.run_path(str(DOCS / "loss_curves.py"), run_name="__main__")
    assert Image.open(figure).size == Image.open(DOCS / "loss-curves-drawings.png").size
    printed = capsys.readouterr().out
    assert "| `drawings` | clip | 5,000 | contrastive loss 2.982, accuracy within a batch 0.418 |" in printed
    assert "| `drawings` | transformer | 15,070 | nats per image token 1.464, nats per text token 3.447 |" in printed
    page = (DOCS / "training.md").read_text(encoding="utf-8")
    assert "| CLIP | 5,000 | contrastive loss 2.98, accuracy within a batch of 128 .42 |" in page
    assert "| 15,070 | 1.464 nats per image token, 3.45 per text token |" in page


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(DOCS / "patterns.py"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """Return the image written by `python docs/patterns.py file`."""
    path = tmp_path_factory.mktemp("figure") / "patterns.png"
    arguments, sys.argv = sys.argv, ["patterns.py", str(path)]
    try:
        runpy.run_path(str(DOCS / "patterns.py"), run_name="__main__")
    finally:
        sys.argv = arguments
    return path


def squares(path: Path, script: dict, panel: int) -> list[list[tuple[int, ...]]]:
    """Return the colours of a panel's cells, row by row."""
    figure = Image.open(path).convert("RGB")
    cell, head, title, margin = (script[name] for name in ("CELL", "HEAD", "TITLE", "MARGIN"))
    width, height = head + 22 * cell + margin, title + head + 22 * cell + margin
    left, top = margin + panel % 2 * width + head, margin + panel // 2 * height + title + head
    middle = cell // 2 - 1
    pixels = figure.load()
    return [[pixels[left + x * cell + middle, top + y * cell + middle] for x in range(22)] for y in range(22)]


@pytest.mark.parametrize("panel", range(4))
def test_figure_shows_the_transformers_masks(script, drawn, panel):
    pattern, cells = PANELS[panel]
    order = [*range(6), *(6 + cell for cell in cells)]
    attend_mask = sequence_attend_mask(pattern, 6, 4)[order][:, order]
    colours, blank = squares(drawn, script, panel), ImageColor.getrgb(script["UNSEEN"])
    # the upper right corner shows what one state sees as a picture
    shown = [(y, x) for y in range(22) for x in range(22) if y >= 6 or x < 16]
    assert [colours[y][x] != blank for y, x in shown] == [bool(attend_mask[y, x]) for y, x in shown]
    assert attend_mask[:6, 16:].sum() == 0


@pytest.mark.parametrize("panel", range(4))
def test_figure_in_docs_is_up_to_date(script, drawn, panel):
    assert squares(DOCS / "patterns.png", script, panel) == squares(drawn, script, panel)
    assert Image.open(DOCS / "patterns.png").size == Image.open(drawn).size
