"""Data module: samples of training images, some unreadable, words of captions, and the records of several ranks."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from tiny_stages import build
from unreadable_source import PartlyUnreadable

from dalle import distributed
from dalle.data.folder import FolderConfig, FolderSource
from dalle.data.prefetch import LoadingError
from dalle.tokenizer import words_of

sys.path.insert(0, str(Path(__file__).parents[1]))

from ranks import torchrun  # noqa: E402 (found on the path set above)

COUNT = 10

RANK = """
import sys
from pathlib import Path
from dalle import distributed
from dalle.data.folder import FolderConfig
from tiny_stages import build

distributed.init_process_group("cpu")
folder, rank = Path(sys.argv[1]), distributed.get_rank()
for copies in ("same", "other"):
    data = FolderConfig(path=str(folder / copies / str(rank)), image_size=16, allow_missing_captions=True)
    try:
        build("dvae", data=data, validation_images=1)
        said = "no error"
    except ValueError as problem:
        said = str(problem)
    (folder / f"{copies}-{rank}.txt").write_text(said)
distributed.destroy_process_group()
"""


def data_module(broken=()):
    data = build("dvae").data
    data.train = PartlyUnreadable(data.train, set(broken))
    return data


def images(broken=(), count: int = COUNT) -> list[bytes]:
    return [image.numpy().tobytes() for image in data_module(broken).sample_of_training(count, number=3)]


def test_caption_words_are_those_of_the_training_captions():
    data = build("clip", tokenizer_records=64).data
    captions = [caption for index in range(len(data.train)) for caption in data.train.captions(index)]
    assert data.words == set().union(*map(words_of, captions))
    assert data.add_provenance({}, Path())["caption_words"] == sorted(data.words)


@pytest.mark.parametrize(
    ("meta", "expected"),
    [({"caption_words": ["zebra"]}, {"red", "circle", "zebra"}), ({}, set())],
    ids=["listed", "not listed"],
)
def test_caption_words_include_those_of_init_and_are_none_if_init_lists_none(meta, expected):
    data = data_module()
    data.init = SimpleNamespace(read_config=lambda: ({}, meta))
    assert data.caption_words(["red circle", "Circle"]) == expected


def test_too_many_caption_words_are_not_listed(monkeypatch):
    monkeypatch.setattr("dalle.stages.data_module.MAX_CAPTION_WORDS", 3)
    captions = iter(["red circle", "two blue cubes", "never read"])
    data = data_module()
    data.words = data.caption_words(captions)
    assert list(captions) == ["never read"]
    assert "caption_words" not in data.add_provenance({}, Path())


@pytest.fixture(scope="module")
def drawn() -> list[int]:
    """Return the records of the sample, found by breaking one record at a time."""
    before = images()
    return [record for record in range(64) if images({record}) != before]


def test_unreadable_images_are_replaced_by_others(drawn):
    before = images()
    assert len(drawn) == COUNT
    after = images(drawn[:3])
    assert len(after) == COUNT
    assert set(before) - set(after) and len(set(before) & set(after)) >= COUNT - 3


def test_images_that_are_not_drawn_change_nothing(drawn):
    assert images(set(range(64)) - set(drawn)) == images()


def test_a_sample_is_smaller_if_few_images_can_be_read():
    assert len(images(set(range(64)) - {5, 9})) == 2


def test_a_sample_of_unreadable_images_raises():
    with pytest.raises(LoadingError, match="none of 64 records can be read; the first is record .*broken for a test"):
        images(range(64))


def test_records_are_listed_once_for_both_splits(tmp_path, monkeypatch):
    for name in "abcd":
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.png")
    listings, list_records = [], FolderSource.list_records
    monkeypatch.setattr(FolderSource, "list_records", lambda self: listings.append(self) or list_records(self))
    data = build("dvae", data=FolderConfig(path=str(tmp_path), image_size=16, allow_missing_captions=True)).data
    assert len(listings) == 1
    assert sorted([*data.train.keys(), *data.val.keys()]) == ["a.png", "b.png", "c.png", "d.png"]


def test_ranks_with_different_files_are_refused(tmp_path):
    for copies, rank, names in (("same", 0, "abcd"), ("same", 1, "abcd"), ("other", 0, "abcd"), ("other", 1, "abce")):
        folder = tmp_path / copies / str(rank)
        folder.mkdir(parents=True)
        for name in names:
            Image.new("RGB", (16, 16)).save(folder / f"{name}.png")
    (tmp_path / "rank.py").write_text(RANK)
    torchrun(2, tmp_path / "rank.py", tmp_path, search=(Path(__file__).parent,))
    for rank in (0, 1):
        assert (tmp_path / f"same-{rank}.txt").read_text() == "no error"
        said = (tmp_path / f"other-{rank}.txt").read_text()
        assert said.startswith("the data differ between ranks: the split ") and "give all ranks the same files" in said


@pytest.mark.parametrize("ranks", [64, 65])
def test_fewer_records_than_ranks_are_refused(monkeypatch, ranks):
    monkeypatch.setattr(distributed, "get_world_size", lambda: ranks)
    monkeypatch.setattr("dalle.stages.data_module.check_same_records", lambda _: None)
    if ranks == 64:
        build("dvae", batch_size=ranks)
    else:
        with pytest.raises(ValueError, match=r"the split train has 64 records for 65 ranks.* start at most as many"):
            build("dvae", batch_size=ranks)
