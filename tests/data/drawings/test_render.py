"""The cache of rendered drawings: what is left out, damaged files."""

import json
import shutil

import pytest

from dalle.data.drawings.folder import SUBJECTS
from dalle.data.drawings.render import Drawings, Rendered, distinct
from dalle.data.drawings.subjects import Subject

SIDE = 16


@pytest.fixture
def folder(drawings, tmp_path):
    return shutil.copytree(drawings, tmp_path / "drawings")


def test_empty_and_ambiguous_drawings_of_a_set_are_left_out():
    subjects = {
        name: Subject(name, concept, {})
        for name, concept in zip("abcd", ("flag", "island", "hand", "hand"), strict=True)
    }
    drawings = [
        Rendered("1", "a", "", b"", "same", False),
        Rendered("2", "b", "", b"", "same", False),  # another concept
        Rendered("3", "c", "", b"", "hand", False),
        Rendered("4", "c", "dark", b"", "hand", False),  # the tone is not to be seen
        Rendered("5", "d", "", b"", "hand", False),  # another subject of the same concept
        Rendered("6", "a", "", b"", "white", True),
        Rendered("7", "a", "", b"", "own", False),
        Rendered("8", "c", "dark", b"", "dark hand", False),
    ]
    assert [drawing.name for drawing in distinct(drawings, subjects)] == ["3", "5", "7", "8"]


@pytest.mark.parametrize("damage", ["index cut", "index empty", "pack cut", "pack missing"])
def test_a_damaged_cache_is_rendered_again(folder, damage):
    first = Drawings(folder, SIDE)
    pixels = first.image(3).tobytes()
    path = folder / (f"rendered-{SIDE}.json" if damage.startswith("index") else f"rendered-{SIDE}.png-pack")
    if damage.endswith("missing"):
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage.endswith("empty") else -100])
    again = Drawings(folder, SIDE)
    assert again.image(3).tobytes() == pixels and again.digest == first.digest


def test_the_digest_depends_on_pixels_and_words(folder):
    first = Drawings(folder, SIDE).digest
    path = folder / SUBJECTS
    subjects = json.loads(path.read_text())
    subjects[0]["labels"]["fr"] = "autre"
    path.write_text(json.dumps(subjects))
    words = Drawings(folder, SIDE).digest
    assert len({first, words, Drawings(folder, SIDE + 1).digest}) == 3


@pytest.mark.parametrize("name", ["twemoji.tar.xz", SUBJECTS])
def test_a_damaged_file_of_the_folder_is_named(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:50])
    with pytest.raises(ValueError, match=f"{name} cannot be read: .*; run `make drawings` again"):
        Drawings(folder, SIDE)
