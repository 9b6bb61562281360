import json
import shutil

import pytest
import torch

from dalle import bundled, checkpoint
from dalle.checkpoint import CheckpointError
from dalle.data.drawings.source import DrawingsConfig
from dalle.sampling.components import find_components
from dalle.sampling.export import export_pipeline, portable
from dalle.sampling.pipeline import DALLE
from dalle.weights_files import read_weights, weights_files

CAPTION = "a red circle"


def test_exported_models_are_the_same_in_fewer_bytes(checkpoints, tmp_path):
    written = export_pipeline(checkpoints, tmp_path / "out", torch.bfloat16, max_bytes=12_000)
    assert list(written) == ["dvae", "clip", "transformer"]
    for kind, folder in written.items():
        files = weights_files(folder)
        assert all(path.stat().st_size <= 12_000 for path in files)
        before, after = read_weights(checkpoints / kind), read_weights(folder)
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            expected = tensor if kind == "dvae" else tensor.bfloat16()
            assert torch.equal(after[name], expected), name
    assert len(weights_files(written["transformer"])) > 1

    exported = DALLE.load(tmp_path / "out")
    assert exported.clip is not None
    assert next(exported.transformer.parameters()).dtype == torch.float32


def test_export_in_float32_draws_the_same_images(checkpoints, tmp_path):
    export_pipeline(checkpoints, tmp_path / "out", torch.float32, max_bytes=10**6)
    results = [DALLE.load(folder).generate(CAPTION, candidates=3, keep=3) for folder in (checkpoints, tmp_path / "out")]
    assert results[0].scores == results[1].scores
    assert [image.tobytes() for image in results[0].images] == [image.tobytes() for image in results[1].images]


def test_the_record_of_the_data_has_no_absolute_paths():
    meta = {"data": {"name": "drawings", "path": "/home/me/drawings"}, "init": {"path": "/home/me/base", "digest": "1"}}
    clean = portable(meta)
    assert clean["data"]["path"] == DrawingsConfig.path
    assert clean["init"]["path"] == "base"
    assert meta["data"]["path"] == "/home/me/drawings"
    assert portable({"data": {"name": "folder", "path": "pictures"}})["data"]["path"] == "pictures"
    assert portable({"step": 3}) == {"step": 3}


def test_prepare_exports_a_checkpoint(prepare, checkpoints, tmp_path):
    status, printed = prepare(f"export={checkpoints}", "out=mine")
    assert status == 0, printed
    assert "total" in printed
    assert DALLE.load(tmp_path / "mine").transformer.config == DALLE.load(checkpoints).transformer.config
    status, printed = prepare(f"export={checkpoints}", "out=mine")
    assert (status, "mine exists and is not an empty folder" in printed) == (2, True)
    status, printed = prepare(f"export={checkpoints}", "out=other", "weights=int8")
    assert (status, "weights=int8 is unknown; choose float32 or bfloat16" in printed) == (2, True)
    status, printed = prepare("export=nowhere", "out=other")
    assert (status, "no checkpoint at nowhere" in printed) == (2, True)


@pytest.fixture
def packaged(checkpoints, tmp_path, monkeypatch):
    """Models that come with the package: the one of the tests, under the name `shapes`."""
    shutil.copytree(checkpoints, tmp_path / "package/shapes")
    monkeypatch.setattr(bundled, "FOLDER", tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "package/shapes"


def test_models_of_the_package_are_found_by_name(packaged, checkpoints, tmp_path):
    assert bundled.bundled_names() == ["shapes"]
    assert find_components("shapes")["clip"] == packaged / "clip"
    assert bundled.checkpoint_folder("shapes/dvae") == packaged / "dvae"
    assert bundled.checkpoint_folder("shapes/../../x").parts[0] == "shapes"
    with pytest.raises(CheckpointError, match="no checkpoint at other"):
        find_components("other")
    shutil.copytree(checkpoints, tmp_path / "shapes")
    assert bundled.checkpoint_folder("shapes").resolve() == tmp_path / "shapes"


def test_the_meta_of_an_exported_transformer_names_the_exported_dvae(checkpoints, tmp_path):
    written = export_pipeline(checkpoints, tmp_path / "out")
    meta = json.loads((written["transformer"] / checkpoint.CONFIG).read_text())["meta"]
    assert meta["dvae"] == {"path": "../dvae", "digest": checkpoint.digest(written["dvae"])}
