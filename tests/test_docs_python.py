"""The Python examples in README.md and docs/ run as they are printed, with tiny models in place of the named ones."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from dalle import bundled, push_to_hub

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = {
    page.name: re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL) for page in PAGES
}
ELSEWHERE = {"data.md"}  # a data source: tests/data/test_files.py runs it


@pytest.fixture
def folder(checkpoints, tmp_path, monkeypatch):
    """Working folder with the models and images that the examples name; the tiny model is in place of `drawings`."""
    shutil.copytree(checkpoints, tmp_path / "package/drawings")
    shutil.copytree(checkpoints, tmp_path / "outputs/demo")
    shutil.copytree(checkpoints / "dvae", tmp_path / "outputs/dvae/mine")
    Image.new("RGB", (20, 16), "red").save(tmp_path / "photo.png")
    mask = Image.new("L", (20, 16))
    mask.paste(255, (0, 0, 8, 8))
    mask.save(tmp_path / "mask.png")
    monkeypatch.setattr(bundled, "FOLDER", tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(page: str, **variables) -> dict:
    """Run the example of a page, in which `variables` exist already. Returns its variables."""
    (example,) = EXAMPLES[page]
    exec(compile(example, page, "exec"), variables)
    return variables


@pytest.mark.parametrize("page", ["README.md", "api.md", "edits.md", "fine-tuning.md", "index.md", "sampling.md"])
def test_an_example_with_models_on_disk_runs(folder, page):
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))  # those that an example encodes
    found = run(page, images=images)
    if page == "fine-tuning.md":
        assert Image.open("reconstruction.png").size == (8, 8)
        return
    assert found["result"].images
    if page in ("README.md", "api.md"):
        assert found["tokens"].shape == (2, 4, 4) and found["images"].shape == images.shape
    if page == "index.md":
        assert Image.open("apple.png").size == (8, 8)
    if page == "sampling.md":
        assert len(found["results"]) == 2


def test_the_example_of_the_hub_runs(folder, hub_server):
    push_to_hub("outputs/demo", "my-name/shapes")
    push_to_hub("outputs/demo", "my-name/shapes", revision="v1")
    run("pretrained.md")
    assert "my-name/codes" in hub_server.repositories


def test_the_example_of_the_studio_runs(checkpoints):
    running_studio = pytest.importorskip("running_studio", reason="needs the extra studio")
    pytest.importorskip("openai", reason="needs the package openai, of the extra dev")
    from dalle.studio.config import StudioConfig
    from dalle.studio.session import Session

    session = Session.load(StudioConfig(checkpoint=str(checkpoints)))
    with running_studio.running(session) as studio:
        example = EXAMPLES["studio.md"][0].replace("http://127.0.0.1:7860", studio.address)
        found: dict = {}
        exec(compile(example.replace("<token>", running_studio.TOKEN), "studio.md", "exec"), found)
        found["client"].close()
    assert [image.seed for image in found["answer"].data] == [0, 0]


def test_every_example_is_run():
    tested = {
        "README.md",
        "api.md",
        "edits.md",
        "fine-tuning.md",
        "index.md",
        "sampling.md",
        "pretrained.md",
        "studio.md",
    }
    assert {page for page, examples in EXAMPLES.items() if examples} == tested | ELSEWHERE
