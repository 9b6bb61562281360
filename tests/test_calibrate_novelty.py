"""tools/calibrate_novelty.py: changed copies share tokens with their originals, and the table has the shares."""

import json
import runpy
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

from dalle import checkpoint
from dalle.data.blocks import BlocksConfig

TOOL = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "calibrate_novelty.py"))


@pytest.fixture
def trained(checkpoints, tmp_path):
    """Return `checkpoints` with a record of their training data."""
    folder = shutil.copytree(checkpoints, tmp_path / "trained")
    path = folder / "transformer" / checkpoint.CONFIG
    written = json.loads(path.read_text())
    written["meta"]["data"] = asdict(BlocksConfig(image_size=8, train=24, val=12))
    path.write_text(json.dumps(written))
    return folder


def test_the_tables_have_shares_of_each_change_and_of_held_out_images(trained, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    TOOL["main"]([f"checkpoint={trained}", "images=12"])
    first, second = capsys.readouterr().out.split("\n\n")
    header, _, *rows = first.splitlines()
    columns = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, *rows)]
    assert all(len(cells) == len(columns[0]) for cells in columns)
    shares = {name: list(map(float, values)) for name, *values in columns[1:]}
    assert shares.keys() > {"through the dVAE once more", "JPEG, quality 60"}
    for values in shares.values():
        assert values[:5] == sorted(values[:5])  # quantiles
        assert values[5:] == sorted(values[5:], reverse=True)  # shares above rising thresholds
    _, _, *rows, last = second.splitlines()
    decisions = {name: list(map(float, values)) for name, *values in (line.strip("| ").split(" | ") for line in rows)}
    assert decisions.keys() == shares.keys()
    for images, *parts in decisions.values():
        by_hash, by_hash_and_colours, by_tokens, by_tokens_and_colours = parts
        assert images <= 12 and 1 >= by_hash >= by_hash_and_colours and 1 >= by_tokens >= by_tokens_and_colours
    assert last == "COPY_SHARE is 0.5, COPY_LEVELS 80"


def test_other_data_can_be_given(trained, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    settings = ["data=blocks", "data.image_size=8", "data.train=6", "data.val=4", "data.novel=4"]
    TOOL["main"]([f"checkpoint={trained}", "images=6", *settings])
    assert "| held-out images of novel and the nearest training images | 4 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="unknown settings: dataset"):
        TOOL["main"](["dataset=blocks"])


def test_copies_are_moved_and_shrunk_on_white():
    image = Image.new("RGB", (20, 20), "black")
    moved, smaller = TOOL["shift"](image, 3), TOOL["rescale"](image, 0.8)
    white = (255, 255, 255)
    assert moved.size == smaller.size == (20, 20)
    assert [moved.getpixel(at) for at in ((2, 10), (3, 3))] == [white, (0, 0, 0)]
    assert [smaller.getpixel(at) for at in ((1, 10), (10, 10), (18, 10))] == [white, (0, 0, 0), white]
