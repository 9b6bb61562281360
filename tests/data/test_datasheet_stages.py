"""Datasheet of a model of several stages: what they have in common is said once, what differs by stage."""

import json
import shutil

import pytest

from dalle.data import open_source
from dalle.data.audit.datasheet import write_datasheet
from dalle.data.audit.provenance import data_meta, find_provenance
from dalle.data.audit.stage_data import group_stages, name_stages
from dalle.data.blocks import BlocksConfig
from dalle.models.clip.model import CLIP
from dalle.models.decoder.model import DiffusionDecoder
from dalle.models.dvae.model import DiscreteVAE
from dalle.models.transformer.model import Transformer
from dalle.tokenizer import CaptionTokenizer

OPENMOJI = {"set": "openmoji", "author": "OpenMoji", "licence": "CC-BY-SA-4.0", "url": "https://openmoji.org"}
TWEMOJI = {"set": "twemoji", "author": "Twitter", "licence": "CC-BY-4.0", "url": "https://twemoji.org"}
DATA = BlocksConfig(image_size=8, train=5, val=3)
SMALL = BlocksConfig(image_size=8, train=4, val=3)


def recorded(data=DATA, **changes):
    return data_meta(data, {split: open_source(data, split) for split in ("train", "val")}) | changes


def drawings(counts, authors, packages=(), **changes):
    """Return the entries of a checkpoint of drawings."""
    records = {"train": {"records": sum(counts.values()), "digest": f"{len(counts)}abc", "left_out": {"empty": 7}}}
    data = {"name": "drawings", "path": "/secret", "image_size": 128, "mix": {"panels": 0.1 * len(counts)}}
    return {
        "data": data,
        "records": records,
        "left_out_complete": True,
        "counts": {"style": counts},
        "attributions": authors,
        "packages": list(packages),
    } | changes


@pytest.fixture
def save(checkpoints, decoder_folder, tmp_path):
    """Function that saves tiny models with these entries in their meta, and returns them as stages."""

    def save_all(**metas):
        folder = tmp_path / "model"
        for kind, meta in metas.items():
            source = decoder_folder if kind == "decoder" else checkpoints / kind
            if kind == "transformer":
                Transformer.load(source).save(folder / kind, meta, CaptionTokenizer.load(source / "tokenizer.json"))
            else:
                {"dvae": DiscreteVAE, "clip": CLIP, "decoder": DiffusionDecoder}[kind].load(source).save(
                    folder / kind, meta
                )
        return name_stages(find_provenance(folder))

    return save_all


def written(folder, stages):
    """Return the page, and the Croissant metadata as mlcroissant reads it."""
    mlcroissant = pytest.importorskip("mlcroissant")
    page, metadata = write_datasheet(folder, stages)
    dataset = mlcroissant.Dataset(json.loads(metadata.read_text()))
    assert not dataset.metadata.issues.errors
    assert str(folder) not in page.read_text() + metadata.read_text()
    return page.read_text(), dataset


def test_stages_with_the_same_data_are_described_once(save, tmp_path):
    stages = save(dvae=recorded(), transformer=recorded(), clip=recorded(), decoder=recorded())
    page, dataset = written(tmp_path, stages)
    digest = open_source(DATA, "train").digest()
    assert page.startswith("# Training data of dvae, transformer, clip and decoder\n")
    for name in stages:
        assert f"| {name} | `blocks` | 5 | `{digest}` |" in page
    assert page.count("| image_size | 8 |") == page.count("Left out of the whole data set: nothing.") == 1
    assert f"\n| train | 5 | `{digest}` |\n" in page
    assert "differ" not in page
    assert "dvae, transformer, clip and decoder were trained on: 5 records" in dataset.metadata.description
    assert dataset.metadata.cite_as == f"data=blocks, digest {digest}"
    assert "train: 5" in dataset.metadata.data_preprocessing_protocol


def test_stages_that_differ_are_in_a_table(save, tmp_path):
    stages = save(dvae=recorded(), transformer=recorded(SMALL), clip=recorded())
    page, dataset = written(tmp_path, stages)
    many, few = (open_source(data, "train").digest() for data in (DATA, SMALL))
    assert "## Settings that differ\n| setting | dvae | transformer | clip |" in page
    assert "\n| train | 5 | 4 | 5 |\n" in page
    assert page.count("| image_size | 8 |") == 1
    assert f"| dvae and clip | train | 5 | `{many}` |" in page
    assert f"| transformer | train | 4 | `{few}` |" in page
    rows = list(dataset.records("stages"))
    assert [(row["stages/stage"], row["stages/split"], row["stages/records"]) for row in rows] == [
        (stage, split, count)
        for stage, total in (("dvae", 5), ("transformer", 4), ("clip", 5))
        for split, count in (("train", total), ("val", 3))
    ]
    assert {"dvae and clip: train: 5", "transformer: train: 4"} < set(dataset.metadata.data_preprocessing_protocol)


def test_counts_authors_and_files_are_those_of_all_stages(save, tmp_path):
    def package(name):
        return {"name": name, "url": f"pkg:npm/{name}", "sha256": "5" * 64}

    stages = save(
        dvae=drawings({"line": 9, "flat": 5}, [OPENMOJI, TWEMOJI], [package("openmoji"), package("twemoji")]),
        transformer=drawings({"line": 3}, [OPENMOJI], [package("openmoji")], init={"path": "../x", "digest": "def"}),
    )
    page, dataset = written(tmp_path, stages)
    assert "| style | dvae | transformer |" in page
    assert "| line | 9 | 3 |\n| flat | 5 | 0 |" in page
    assert "| openmoji | OpenMoji | CC-BY-SA-4.0 | https://openmoji.org | dvae and transformer |" in page
    assert "| twemoji | Twitter | CC-BY-4.0 | https://twemoji.org | dvae |" in page
    assert f"| twemoji | `{'5' * 64}` | pkg:npm/twemoji | dvae |" in page
    assert page.count("Left out of the whole data set: 7 empty.") == page.count("Show with images of the model") == 1
    assert "Training of transformer started from a model with digest `def`" in page
    assert dataset.metadata.license == ["CC-BY-4.0", "CC-BY-SA-4.0"]
    assert [file.name for file in dataset.metadata.distribution] == ["openmoji", "twemoji"]
    columns = [f"counts-by-style/{field}" for field in ("stages", "style", "records")]
    rows = [[row[column] for column in columns] for row in dataset.records("counts-by-style")]
    assert rows == [["dvae", "line", 9], ["dvae", "flat", 5], ["transformer", "line", 3]]
    assert "/secret" not in page


def test_filters_and_opt_outs_are_those_of_each_stage(save, tmp_path):
    opted_out = drawings({"line": 2}, [OPENMOJI])
    opted_out["data"] |= {"opt_out": "/secret/list.txt"}
    opted_out["records"]["train"]["left_out"] = {"empty": 7, "on the opt-out list": 1}
    page, dataset = written(tmp_path, save(dvae=drawings({"line": 3}, [OPENMOJI]), transformer=opted_out))
    assert "- dvae: Left out of the whole data set: 7 empty. Opt-out list: none.\n" in page
    said = "transformer: Left out of the whole data set: 7 empty; 1 on the opt-out list. Opt-out list: yes."
    assert f"- {said}\n" in page
    assert said in dataset.metadata.data_collection_missing_data


def test_a_stage_without_a_record_is_not_recorded(save, tmp_path):
    stages = save(dvae={"imported": "encoder.pkl"}, transformer=recorded(), clip={})
    page, dataset = written(tmp_path, stages)
    assert "| dvae | not recorded: its weights were imported from encoder.pkl | not recorded | not recorded |" in page
    assert "| clip | not recorded: the checkpoint has no record of it | not recorded | not recorded |" in page
    assert "What follows is about transformer." in page
    assert "The training data of clip are not recorded" in dataset.metadata.description
    assert [row["stages/records"] for row in dataset.records("stages")] == [0, 5, 3, 0]


def test_counts_and_authors_that_a_stage_lacks_are_not_recorded(save, tmp_path):
    without = drawings({"line": 3}, [OPENMOJI])
    del without["counts"], without["attributions"]
    page, dataset = written(tmp_path, save(dvae=without, transformer=drawings({"line": 3}, [OPENMOJI])))
    assert "| line | not recorded | 3 |" in page
    assert (
        "| openmoji | OpenMoji | CC-BY-SA-4.0 | https://openmoji.org | transformer |\n\nFor dvae: not recorded." in page
    )
    assert "Training records of dvae by style: not recorded." in dataset.metadata.description


def test_models_of_the_package_have_one_datasheet(run_command, tmp_path):
    status, printed = run_command("prepare", "sources=drawings", "datasheet=sheet")
    assert status == 0, printed
    page = (tmp_path / "sheet" / "datasheet.md").read_text()
    for kind, records in (("dvae", "55,092"), ("transformer", "34,605"), ("clip", "44,588")):
        assert f"| {kind} | `drawings` | {records} |" in page
    assert "## By style\n| style | dvae | transformer | clip |" in page


def test_two_models_of_one_kind_are_named_after_their_folders(checkpoints, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(checkpoints / "dvae", tmp_path / "runs" / name)
    assert list(name_stages(find_provenance(tmp_path / "runs"))) == ["dvae-first", "dvae-second"]
    shutil.copytree(checkpoints / "dvae", tmp_path / "runs", dirs_exist_ok=True)
    assert list(name_stages(find_provenance(tmp_path / "runs"))) == ["dvae", "dvae-first", "dvae-second"]


def test_stages_are_grouped_by_equal_values():
    assert group_stages({"a": 1, "b": 2, "c": 1}) == [(["a", "c"], 1), (["b"], 2)]
