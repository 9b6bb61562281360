"""Progress bars: shown on terminals and in notebooks, with the time left, and only for work that takes a while."""

import io
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from dalle import progress
from dalle.data.folder import FolderConfig, FolderSource
from dalle.progress import progress_bar, with_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def use_terminal(monkeypatch) -> Terminal:
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    return screen


def test_a_bar_shows_the_share_done_and_the_time_left(monkeypatch):
    terminal = use_terminal(monkeypatch)
    monkeypatch.setattr(progress, "DELAY", 0)
    with progress_bar(4, "hashing", mininterval=0) as bar:
        bar.update(1)
        bar.update(1)
    assert "hashing:  50%" in terminal.getvalue()
    assert "2/4 [" in terminal.getvalue() and "images/s]" in terminal.getvalue()


def test_short_work_shows_no_bar(monkeypatch):
    terminal = use_terminal(monkeypatch)
    with progress_bar(1, "hashing") as bar:
        bar.update(1)
    assert terminal.getvalue().strip() == ""


def test_no_bar_is_written_to_a_file_or_from_other_ranks(monkeypatch):
    terminal = use_terminal(monkeypatch)
    with progress_bar(1, "hashing", shown=False, delay=0) as bar:
        bar.update(1)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar(1, "hashing", delay=0) as bar:
        bar.update(1)
    assert terminal.getvalue() == sys.stderr.getvalue() == ""


@pytest.mark.parametrize(("rank", "shown"), [("0", True), ("3", False)])
def test_only_the_first_rank_shows_a_bar(monkeypatch, rank, shown):
    terminal = use_terminal(monkeypatch)
    monkeypatch.setenv("RANK", rank)
    assert list(with_progress("abc", 3, "hashing")) == ["a", "b", "c"]
    monkeypatch.setattr(progress, "DELAY", 0)
    assert list(with_progress("abc", 3, "hashing")) == ["a", "b", "c"]
    assert ("3/3 [" in terminal.getvalue()) == shown


def test_opening_a_folder_of_many_images_shows_a_bar(monkeypatch, tmp_path):
    for name in ("a", "b", "c"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("a picture\n")
    terminal = use_terminal(monkeypatch)
    monkeypatch.setattr(progress, "DELAY", 0)
    FolderSource(FolderConfig(path=str(tmp_path), image_size=8), "train")
    assert "reading captions: 100%" in terminal.getvalue() and "3/3 [" in terminal.getvalue()


@pytest.mark.slow
def test_a_bar_is_shown_in_a_notebook():
    code = "from dalle.progress import progress_bar\nwith progress_bar(2, 'hashing', delay=0) as bar: bar.update(2)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=120).execute()
    assert "100%" in "".join(output.text for output in notebook.cells[0].outputs if output.name == "stderr")


def test_the_kernel_of_a_notebook_is_not_imported_to_look_for_one():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, dalle.progress as p; p.is_visible(); print('IPython' in sys.modules)"],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "False"
