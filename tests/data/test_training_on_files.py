"""Training of a dVAE from each file source by the command line."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dalle import checkpoint
from dalle.data.folder import FolderSource

TINY = [
    "preset=tiny",
    "device=cpu",
    "wandb.mode=disabled",
    "run=mine",
    "data.image_size=32",
    "data.validation_share=0.3",
    *(f"stage.{setting}" for setting in ("steps=2", "batch_size=4", "workers=0", "validation_images=2")),
    *(f"stage.model.{setting}" for setting in ("vocabulary=8", "width=8", "decoder_input=8", "blocks_per_group=1")),
]
NAMES = [f"{number:03d}" for number in range(10)]


def jpeg(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def folder(root: Path) -> list[str]:
    for number, name in enumerate(NAMES):
        (root / f"{name}.jpg").write_bytes(jpeg(number))
        (root / f"{name}.txt").write_text(f"picture number {name}")
    return ["data=folder", f"data.path={root}"]


def coco(root: Path) -> list[str]:
    for number, name in enumerate(NAMES):
        (root / f"{name}.jpg").write_bytes(jpeg(number))
    images = [{"id": number, "file_name": f"{name}.jpg"} for number, name in enumerate(NAMES)]
    annotations = [{"image_id": number, "caption": f"picture number {name}"} for number, name in enumerate(NAMES)]
    (root / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return ["data=coco", f"data.path={root}", f"data.captions={root}/captions.json"]


def webdataset(root: Path) -> list[str]:
    for shard in range(2):
        with tarfile.open(root / f"{shard:05d}.tar", "w") as tar:
            for number, name in enumerate(NAMES[shard::2]):
                for file, data in ((f"{name}.jpg", jpeg(number)), (f"{name}.txt", b"picture number " + name.encode())):
                    entry = tarfile.TarInfo(file)
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    return ["data=webdataset", f"data.path={root}/{{00000..00001}}.tar"]


@pytest.mark.parametrize("make", [folder, coco, webdataset])
def test_dvae_trains_on_every_source_and_logs_it(make, train, tmp_path):
    root = tmp_path / "my pictures, and more"
    root.mkdir()
    overrides = make(root)
    (tmp_path / "list.txt").write_text("003.jpg\n003")
    status, printed = train(*overrides, *TINY, "data.opt_out=list.txt", "data.filters.min_words=3")
    assert status == 0, printed
    _, meta = checkpoint.read_config(tmp_path / "outputs" / "dvae" / "mine", "dvae")
    assert meta["step"] == 2
    assert meta["data"]["name"] == make.__name__
    assert meta["data"]["path"].startswith(str(root))
    assert meta["data"]["opt_out"] == "list.txt" and meta["data"]["filters"]["min_words"] == 3


def test_all_stages_on_images_without_captions_are_refused_before_the_dvae_is_trained(train, tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    overrides = ["data=folder", f"data.path={tmp_path}", "data.allow_missing_captions=true"]
    status, printed = train("stage=all", *overrides, "device=cpu", "wandb.mode=disabled", "preset=tiny", "run=mine")
    assert status == 2
    assert "0 of 10 records are used" in printed and "all stages but stage=clip, which needs captions" in printed
    assert not (tmp_path / "outputs").exists()


def test_skipped_records_are_logged_and_filters_are_a_config_group(train, tmp_path, caplog):
    overrides = folder(tmp_path)
    (tmp_path / "005.txt").write_text("photographed on 3 May 2008")
    status, printed = train(*overrides, *TINY, "filters=paper", "data.filters.languages=[]")
    assert status == 0, printed
    (sentence,) = caplog.messages
    assert "9 of 10 records are used; left out: 1 with boilerplate captions (first: 005.jpg)" in sentence


SMALL_CLIP = [
    *("stage=clip", "preset=tiny", "device=cpu", "wandb.mode=disabled", "run=mine", "data.image_size=32"),
    *(f"stage.{setting}" for setting in ("batch_size=4", "workers=0", "validation_images=2", "tokenizer_records=100")),
    *(f"stage.model.{setting}" for setting in ("image_width=16", "text_width=16", "image_heads=2", "text_heads=2")),
    "stage.model.text_vocabulary=264",  # 256 bytes, 6 merges and 2 ids of CLIP: any captions fill it
]


def test_a_resumed_run_keeps_its_tokenizer_when_pictures_are_added(train, tmp_path):
    """Another tokenizer of the same size would give the words other ids than those that the weights have learned."""
    (tmp_path / "pictures").mkdir()
    overrides = [*folder(tmp_path / "pictures"), *SMALL_CLIP]
    status, printed = train(*overrides, "stage.steps=2")
    assert status == 0, printed
    saved = tmp_path / "outputs" / "clip" / "mine" / "tokenizer.json"
    before = saved.read_text()
    for number in range(20, 60):
        (tmp_path / "pictures" / f"{number:03d}.jpg").write_bytes(jpeg(number))
        (tmp_path / "pictures" / f"{number:03d}.txt").write_text(f"zebra quagga xylophone {number}")
    status, printed = train(*overrides, "stage.steps=4")
    assert status == 0, printed
    assert "steps 2 to 4" in printed
    assert saved.read_text() == before


def test_a_resumed_run_warns_if_its_data_have_changed(train, tmp_path, caplog):
    (tmp_path / "pictures").mkdir()
    overrides = [*folder(tmp_path / "pictures"), *TINY]
    run, begun = "outputs/dvae/mine", "the data have changed since its last checkpoint"
    assert train(*overrides)[0] == 0
    assert train(*overrides, "stage.steps=3")[0] == 0
    assert caplog.messages == []

    before = checkpoint.read_config(run, "dvae")[1]["records"]
    for number in range(20, 30):
        (tmp_path / "pictures" / f"{number:03d}.jpg").write_bytes(jpeg(number))
        (tmp_path / "pictures" / f"{number:03d}.txt").write_text("another picture")
    assert train(*overrides, "stage.steps=4")[0] == 0
    after = checkpoint.read_config(run, "dvae")[1]["records"]
    assert sum(split["records"] for split in after.values()) == 20
    counts = [f"{split} had {before[split]['records']} records, now {after[split]['records']}" for split in after]
    assert caplog.messages[0].startswith(f"{run}: {begun} ({'; '.join(counts)}), and the run goes on")

    for path in (tmp_path / "pictures").glob("*.jpg"):  # as many records, of other files
        os.utime(path, (1, 1))
    assert train(*overrides, "stage.steps=5")[0] == 0
    digests = checkpoint.read_config(run, "dvae")[1]["records"]["train"]["digest"]
    assert f"captions or files of train: digest was {after['train']['digest']}, now {digests}" in caplog.messages[1]
    assert train(*overrides, "stage.steps=6")[0] == 0
    assert len(caplog.messages) == 2


def test_resuming_passes_over_the_data_no_more_often_than_starting(train, tmp_path, monkeypatch):
    splits: list[str] = []
    digest = FolderSource.digest

    def counted(source: FolderSource) -> str:
        splits.append(",".join(source.keys()))
        return digest(source)

    monkeypatch.setattr(FolderSource, "digest", counted)
    overrides = [*folder(tmp_path), *TINY]
    assert train(*overrides, "stage.steps=2")[0] == 0
    at_start = list(splits)
    assert train(*overrides, "stage.steps=3")[0] == 0
    assert len(at_start) == 2
    assert splits == 2 * at_start
