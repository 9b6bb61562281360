"""tools/naming_test.py: pictures without captions, and answers compared with names fixed beforehand."""

import json
import runpy
from pathlib import Path

import pytest
from drawings_packages import Registry, package_files
from PIL import Image

from dalle.data.drawings.build import build
from dalle.data.drawings.subjects import Subject

TOOL = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "naming_test.py"))


@pytest.mark.parametrize(
    ("said", "same"), [("An Owl", "owl"), ("two owls!", "two owl"), ("glass", "glass"), ("the bus", "bu"), ("a", "a")]
)
def test_articles_case_and_plurals_do_not_matter(said, same):
    assert TOOL["normalise"](said) == same == TOOL["normalise"](same)


def test_names_nouns_and_rare_keywords_are_accepted():
    animals = [Subject(name, name, {"en": name}, {"en": ["animal"]}) for name in ("cat", "dog", "owl", "bear")]
    book = Subject("1F4D5", "book", {"en": "closed book"}, {"en": ["novel"]})
    names = TOOL["accepted_names"]([*animals, book])
    assert names["book"] == {"closed book", "book", "novel"}
    assert names["cat"] == {"cat"}  # four concepts are animals


def test_the_sheets_show_numbers_only_and_answers_are_scored(tmp_path, capsys):
    pytest.importorskip("resvg_py", reason="drawings are rendered with resvg-py, of the extra `data`")
    build(tmp_path / "built", tmp_path / "packages", Registry(package_files()).fetch)
    out = tmp_path / "naming"
    TOOL["main"](["draw", f"out={out}", "real=true", f"data.path={tmp_path / 'built'}", "pictures=3"])
    written = json.loads((out / "answers.json").read_text())
    assert list(written) == ["1", "2", "3"]
    assert len({picture["caption"].split(",")[0] for picture in written.values()}) == 3  # a picture of each concept
    with Image.open(out / "sheet-1.png") as sheet:
        assert sheet.width > 3 * TOOL["TILE"]
    answers = tmp_path / "answers.txt"
    answers.write_text(f"1: {written['1']['accepted'][0]}\n\n03. something else\n")
    capsys.readouterr()
    TOOL["main"](["score", f"out={out}", f"answers={answers}"])
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["right", "wrong", "wrong"]
    assert "'something else'" in lines[2]  # 03 is picture 3
    assert last == "1 of 3 named: 0.33"
    answers.write_text("an owl\n")
    with pytest.raises(ValueError, match="line 1: expected a number and a name"):
        TOOL["main"](["score", f"out={out}", f"answers={answers}"])


def test_without_a_command_it_prints_its_help():
    with pytest.raises(SystemExit, match="Naming test"):
        TOOL["main"]([])


def test_a_misspelled_setting_is_refused():
    with pytest.raises(SystemExit, match="draw has no setting picture; it has out, checkpoint"):
        TOOL["main"](["draw", "picture=3"])
