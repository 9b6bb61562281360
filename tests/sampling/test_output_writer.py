import json
from dataclasses import replace

import pytest
from PIL import Image

from dalle import DALLE
from dalle.sampling import output_writer
from dalle.sampling.command_config import read_captions
from dalle.sampling.output_writer import OutputWriter, new_folder, slug, unused_path

CAPTIONS = ["a small red circle", "three green triangles"]


@pytest.fixture(scope="module")
def results(checkpoints):
    return DALLE.load(checkpoints).generate_many(CAPTIONS, candidates=6, keep=3, seed=5)


def written(folder, results, captions=CAPTIONS, settings=None):
    with OutputWriter(folder, captions, 6, 5, settings or {}) as writer:
        for result in results:
            writer.add(result)
    return writer, json.loads((folder / "samples.json").read_text())


def test_json_and_images_agree(results, tmp_path):
    folder = tmp_path / "new" / "folder"
    writer, facts = written(folder, results, settings={"temperature": 1.0})
    assert facts["settings"] == {"temperature": 1.0}
    assert [entry["caption"] for entry in facts["captions"]] == CAPTIONS
    assert [entry["drawn"] for entry in facts["captions"]] == [6, 6]
    entries = [image for entry in facts["captions"] for image in entry["images"]]
    assert [entry["file"] for entry in entries] == [path.name for path in writer.files]
    for result, described in zip(results, facts["captions"], strict=True):
        assert [image["rank"] for image in described["images"]] == [1, 2, 3]
        assert [image["candidate"] for image in described["images"]] == result.candidates
        assert [image["score"] for image in described["images"]] == result.scores
        for image, entry in zip(result.images, described["images"], strict=True):
            picture = Image.open(folder / entry["file"])
            assert picture.tobytes() == image.tobytes()
            assert picture.info["caption"] == result.caption
            assert json.loads(picture.info["candidate"]) == entry["candidate"]
            assert json.loads(picture.info["seed"]) == 5
            assert json.loads(picture.info["settings"]) == {"temperature": 1.0}


def test_one_grid_shows_all_results(results, tmp_path):
    written(tmp_path, results)
    assert Image.open(tmp_path / "grid.png").width >= 3 * 128


def test_captions_that_differ_in_punctuation_have_their_own_files(results, tmp_path):
    writer, _ = written(tmp_path, [results[0], results[0]])
    assert len(set(writer.files)) == 6


def test_images_are_written_as_they_arrive(results, tmp_path):
    with OutputWriter(tmp_path / "out", CAPTIONS, 6, 5, {}) as writer:
        assert not (tmp_path / "out").exists()
        writer.add(results[0])
        assert len(list((tmp_path / "out").iterdir())) == 3
        writer.add(results[1])
        assert len(list((tmp_path / "out").iterdir())) == 6


def test_partial_results_are_kept_after_an_exception(results, tmp_path):
    with pytest.raises(MemoryError), OutputWriter(tmp_path, CAPTIONS, 6, 5, {}) as writer:
        writer.add(results[0])
        raise MemoryError
    facts = json.loads((tmp_path / "samples.json").read_text())
    assert facts["interrupted"]
    assert [(entry["caption"], entry["drawn"]) for entry in facts["captions"]] == [(CAPTIONS[0], 6), (CAPTIONS[1], 0)]
    assert Image.open(tmp_path / "grid.png").size
    assert not written(tmp_path, results)[1]["interrupted"]


def test_captions_that_are_not_finished_are_written_as_a_captions_file(results, tmp_path):
    captions = [CAPTIONS[0], "a caption\nof two lines", "three"]
    with OutputWriter(tmp_path, captions, 6, 5, {}) as writer:
        writer.add(results[0])
        writer.add(replace(results[1], caption=captions[1], num_sampled=2))
    assert writer.finished == 1
    assert read_captions(tmp_path / "remaining.txt") == ["a caption of two lines", "three"]
    with OutputWriter(tmp_path / "single", captions[:1], 9, 5, {}) as writer:  # candidate_offset= samples the rest
        writer.add(results[0])
    written(tmp_path / "all", results)
    assert not [*tmp_path.glob("*/remaining.txt")]


def test_grid_shows_first_captions_and_counts_the_others(results, tmp_path, monkeypatch):
    written(tmp_path / "all", [results[0]] * 4, CAPTIONS * 2)
    monkeypatch.setattr(output_writer, "MAX_GRID_ROWS", 2)
    writer, facts = written(tmp_path / "some", [results[0]] * 4, CAPTIONS * 2)
    assert len(writer.rows) == 2
    assert len(facts["captions"]) == 4
    rows, some = (Image.open(tmp_path / name / "grid.png").height for name in ("all", "some"))
    two, _ = written(tmp_path / "two", [results[0]] * 2)
    assert Image.open(tmp_path / "two" / "grid.png").height < some < rows


def test_nothing_is_written_without_results(tmp_path):
    with OutputWriter(tmp_path / "out", CAPTIONS, 6, 5, {}):
        pass
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("caption", "name"),
    [("A red circle!", "a-red-circle"), ("../../etc", "etc"), ("???", "caption"), ("ab " * 40, ("ab-" * 16)[:-1])],
)
def test_file_names_are_made_of_caption_words(caption, name):
    assert slug(caption) == name


def test_existing_results_are_not_overwritten(tmp_path):
    assert unused_path(tmp_path / "a") == tmp_path / "a"
    for name in ("a", "a-2"):
        (tmp_path / name).mkdir()
    assert unused_path(tmp_path / "a") == tmp_path / "a-3"


def test_runs_that_start_together_have_folders_of_their_own(tmp_path):
    with new_folder(tmp_path / "samples" / "a") as one, new_folder(tmp_path / "samples" / "a") as two:
        assert (one.name, two.name) == ("a", "a-2")
        (one / "grid.png").touch()
    assert (one / "grid.png").exists() and not two.exists()  # an empty one is removed
