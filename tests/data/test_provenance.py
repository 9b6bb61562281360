import json
from pathlib import Path

import pytest
import torch

from dalle import bundled, checkpoint
from dalle.checkpoint import CheckpointError
from dalle.data import open_source
from dalle.data.audit.datasheet import datasheet
from dalle.data.audit.provenance import data_meta, find_provenance
from dalle.data.blocks import BlocksConfig
from dalle.stages.data_module import DataModule, StageContext
from dalle.stages.dvae import DVAEStageConfig

DATA = BlocksConfig(train=5, val=3)


def write(folder, meta):
    folder.mkdir(parents=True)
    written = {"format": 1, "kind": "dvae", "model": {}, "meta": meta}
    (folder / checkpoint.CONFIG).write_text(json.dumps(written))


def meta_of(data=DATA):
    return data_meta(data, {split: open_source(data, split) for split in ("train", "val")})


def test_stage_records_its_training_data():
    data_module = DataModule(DATA, DVAEStageConfig(batch_size=2, workers=0), StageContext(0, torch.device("cpu")))
    meta = json.loads(json.dumps(data_module.add_provenance({"step": 1}, Path())))
    assert meta["step"] == 1
    assert meta["data"]["train"] == 5
    assert {split: told["records"] for split, told in meta["records"].items()} == {"train": 5, "val": 3}
    assert meta["records"]["train"]["digest"] == data_module.train.digest()


def test_checkpoint_lists_unchanged_sources(tmp_path):
    write(tmp_path / "whole" / "dvae", meta_of())
    write(tmp_path / "whole" / "clip", {"imported": "openai-clip"})
    clip, dvae = find_provenance(tmp_path / "whole")
    text = "\n".join(dvae.report_lines())
    assert "trained on data=blocks" in text
    assert "train: 5 records, digest " in text
    assert "the data are unchanged" in text
    assert list(dvae.record_keys()) == [f"train/{index:06d}" for index in range(5)]
    assert "imported from openai-clip" in clip.report_lines()[0]
    assert find_provenance(tmp_path / "whole" / "dvae")[0].report_lines() == dvae.report_lines()


def test_changed_or_missing_data_are_reported(tmp_path):
    meta = meta_of()
    meta["records"]["train"]["digest"] = "0" * 32
    write(tmp_path / "changed", meta)
    (changed,) = find_provenance(tmp_path / "changed")
    assert "have CHANGED since" in changed.compare()
    with pytest.raises(CheckpointError, match="was trained on 5 records, and the data have changed since"):
        changed.record_keys()
    gone = {"name": "folder", "path": str(tmp_path / "gone")}
    write(tmp_path / "old", {"data": gone, "records": meta["records"]})
    assert "the data cannot be opened" in find_provenance(tmp_path / "old")[0].compare()


@pytest.mark.parametrize("folder", sorted(bundled.FOLDER.glob("*/*/config.json")), ids=lambda path: path.parent.name)
def test_models_of_the_package_name_the_authors_of_their_data(folder):
    (model,) = find_provenance(folder.parent)
    notice = (folder.parents[1] / "NOTICE").read_text()
    authors = model.meta["attributions"]
    assert len(authors) == 26  # sets of drawings
    for author in authors:
        assert set(author) == {"set", "author", "licence", "url"} and all(author.values())
        assert f"- {', '.join(author.values())}\n" in notice
        assert f"| {author['set']} | {author['author']} | {author['licence']} | {author['url']} |" in datasheet(
            {model.kind: model}
        )


def test_checkpoint_without_provenance_is_reported(tmp_path):
    write(tmp_path / "a", {"data": {"name": "blocks"}})
    assert "has no digest of its data" in find_provenance(tmp_path / "a")[0].compare()
    write(tmp_path / "b", {})
    with pytest.raises(CheckpointError, match="does not record its training data"):
        find_provenance(tmp_path / "b")[0].record_keys()
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        find_provenance(tmp_path / "c")
