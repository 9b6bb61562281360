"""prepare.py on data sets: survey, image search, and the training data of a checkpoint."""

import json
import os
import shutil
import sys

import pytest
from PIL import Image

from dalle.data.blocks import BlocksConfig, BlocksSource
from dalle.sampling.novelty import TrainingImages

BLOCKS = ["data=blocks", "data.train=24", "data.val=6", "data.image_size=32", "workers=0"]
SCENES = BlocksSource(BlocksConfig(image_size=32, train=24), "train")


def test_survey_of_a_data_set(prepare, tmp_path):
    status, printed = prepare(*BLOCKS, "out=seen")
    assert status == 0, printed
    assert "train: 24 records" in printed
    assert "the captions have too few words for the 16,384 requested" in printed
    facts = json.loads((tmp_path / "seen" / "survey.json").read_text())
    assert facts["data"]["name"] == "blocks"
    status, printed = prepare(*BLOCKS, "out=seen")
    assert (status, "seen exists and is not an empty folder" in printed) == (2, True)


def test_a_training_image_is_found(prepare, tmp_path):
    SCENES[5].image.resize((100, 100)).save(tmp_path / "holiday, 1.jpg", quality=80)
    status, printed = prepare(*BLOCKS, "find=holiday, 1.jpg", "neighbours=3", "out=found")
    assert status == 0, printed
    assert "is in the training set: train/000005" in printed
    assert printed.count(" levels: train/") == 3
    assert Image.open(tmp_path / "found" / "neighbours.png").size
    Image.radial_gradient("L").save(tmp_path / "other.png")
    status, printed = prepare(*BLOCKS, "find=other.png")
    assert "Neither this image nor a near duplicate of it is among the 24 training images" in printed
    assert (tmp_path / "outputs" / "find" / "other" / "neighbours.png").is_file()
    assert prepare(*BLOCKS, "find=other.png")[0] == 0  # again, after the data have changed for instance
    assert (tmp_path / "outputs" / "find" / "other-2" / "neighbours.png").is_file()


def test_a_taken_output_folder_is_refused_before_the_search(prepare, tmp_path, monkeypatch):
    SCENES[5].image.save(tmp_path / "x.png")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    monkeypatch.setattr(TrainingImages, "open", None)
    status, printed = prepare(*BLOCKS, "find=x.png", "out=full")
    assert status == 2 and "full exists and is not an empty folder" in printed


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names that are not UTF-8")
def test_names_that_are_not_utf_8_are_printed_escaped(prepare, tmp_path):
    (tmp_path / "pictures").mkdir()
    names = [b"caf\xe9.png", b"th\xe9.png", b"p\xe2t\xe9.png"]
    for number, name in enumerate(names):
        SCENES[number].image.save(tmp_path / "x.png")
        os.rename(tmp_path / "x.png", os.path.join(os.fsencode(tmp_path / "pictures"), name))
    SCENES[0].image.save(tmp_path / "x.png")
    data = ["data=folder", f"data.path={tmp_path / 'pictures'}", "data.allow_missing_captions=true"]
    status, printed = prepare(*data, "data.image_size=32", "workers=0", "find=x.png")
    assert status == 0, printed
    printed.encode()  # as standard output does, which raises for lone surrogates
    assert "\\udc" in printed


def test_clip_adds_feature_distances(prepare, checkpoints, tmp_path):
    SCENES[5].image.save(tmp_path / "x.png")
    status, printed = prepare(*BLOCKS, "find=x.png", f"clip={checkpoints / 'clip'}")
    assert status == 0, printed
    assert "0 bits, 0 levels, CLIP 0.000: train/000005" in printed


def test_sources_lists_the_training_data_and_writes_all_record_keys(prepare, train, tmp_path):
    options = ["data.train=24", "data.val=6", "preset=tiny", "stage.steps=1", "stage.batch_size=2", "stage.workers=0"]
    status, printed = train("stage=dvae", "data=blocks", *options, "stage.validation_images=2", "run=a")
    assert status == 0, printed
    status, printed = prepare("sources=outputs/dvae/a", "out=names")
    assert status == 0, printed
    assert "trained on data=blocks" in printed
    assert "train: 24 records, digest " in printed
    assert "the data are unchanged" in printed
    assert (tmp_path / "names" / "dvae.txt").read_text().split() == list(SCENES.keys())


def test_record_keys_have_a_file_for_each_model_whose_data_are_known(prepare, train, tmp_path):
    options = ["data=blocks", "data.val=6", "preset=tiny", "stage.steps=1", "stage.batch_size=2", "stage.workers=0"]
    for run, number in (("a", 24), ("b", 10)):
        status, printed = train(
            "stage=dvae", *options, f"data.train={number}", "stage.validation_images=2", f"run={run}"
        )
        assert status == 0, printed
    imported = tmp_path / "outputs" / "dvae" / "imported"
    imported.mkdir()
    shutil.copy(tmp_path / "outputs" / "dvae" / "a" / "model.safetensors", imported)
    config = json.loads((tmp_path / "outputs" / "dvae" / "a" / "config.json").read_text())
    del config["meta"]["data"]  # as of weights from elsewhere
    (imported / "config.json").write_text(json.dumps(config))
    status, printed = prepare("sources=outputs/dvae", "out=names")
    assert status == 0, printed
    counts = {path.name: len(path.read_text().split()) for path in (tmp_path / "names").iterdir()}
    assert counts == {"dvae-a.txt": 24, "dvae-b.txt": 10}
    assert "imported: its training data are unknown" in printed
    status, printed = prepare("sources=outputs/dvae/imported", "out=none")
    assert (status, (tmp_path / "none").exists()) == (2, False)
    assert "no model of sources=outputs/dvae/imported has a record of its training data" in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["find=x.png"], "nothing to prepare: "),
        ([*BLOCKS, "find=x.png", "neighbours=0"], "neighbours=0 must be at least 1"),
        ([*BLOCKS, "find=x.png"], "find=x.png cannot be read: FileNotFoundError"),
        (["sources=nowhere"], "no checkpoint in nowhere"),
        (["data=folder", "data.path=nowhere"], "data.path=nowhere: there is no such folder"),
        ([*BLOCKS, "limit=0"], "limit=0 leaves nothing to scan"),
    ],
)
def test_errors_are_one_sentence(prepare, arguments, sentence, tmp_path):
    status, printed = prepare(*arguments)
    assert status == 2
    assert sentence in printed
    assert list(tmp_path.iterdir()) == []
