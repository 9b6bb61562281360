import json

import pytest
from PIL import Image

from dalle import DALLE
from dalle.sampling.gallery import slug, unused, write_gallery

CAPTIONS = ["a small red circle", "three green triangles"]


@pytest.fixture(scope="module")
def results(checkpoints):
    return DALLE.load(checkpoints).generate_many(CAPTIONS, candidates=6, keep=3, seed=5)


def test_facts_and_pictures_agree(results, tmp_path):
    files = write_gallery(tmp_path / "new" / "folder", results, 5, {"temperature": 1.0})
    facts = json.loads((tmp_path / "new" / "folder" / "samples.json").read_text())
    assert facts["settings"] == {"temperature": 1.0}
    assert [entry["caption"] for entry in facts["captions"]] == CAPTIONS
    entries = [image for entry in facts["captions"] for image in entry["images"]]
    assert [entry["file"] for entry in entries] == [path.name for path in files]
    for result, described in zip(results, facts["captions"], strict=True):
        assert [image["rank"] for image in described["images"]] == [1, 2, 3]
        assert [image["candidate"] for image in described["images"]] == result.candidates
        assert [image["score"] for image in described["images"]] == result.scores
        for image, entry in zip(result.images, described["images"], strict=True):
            written = Image.open(tmp_path / "new" / "folder" / entry["file"])
            assert written.tobytes() == image.tobytes()
            assert written.info["caption"] == result.caption
            assert json.loads(written.info["candidate"]) == entry["candidate"]
            assert json.loads(written.info["seed"]) == 5
            assert json.loads(written.info["settings"]) == {"temperature": 1.0}


def test_one_sheet_shows_everything(results, tmp_path):
    write_gallery(tmp_path, results, 5, {})
    assert Image.open(tmp_path / "grid.png").width >= 3 * 128


def test_captions_that_differ_only_in_signs_have_files_of_their_own(results, tmp_path):
    twins = [results[0], results[0]]
    assert len(set(write_gallery(tmp_path, twins, 5, {}))) == 6


@pytest.mark.parametrize(
    ("caption", "name"),
    [("A red circle!", "a-red-circle"), ("../../etc", "etc"), ("???", "caption"), ("ab " * 40, ("ab-" * 16)[:-1])],
)
def test_file_names_come_from_the_captions_words(caption, name):
    assert slug(caption) == name


def test_results_of_before_are_not_written_over(tmp_path):
    assert unused(tmp_path / "a") == tmp_path / "a"
    for name in ("a", "a-2"):
        (tmp_path / name).mkdir()
    assert unused(tmp_path / "a") == tmp_path / "a-3"
