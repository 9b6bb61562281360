import json
import shutil

import pytest
import torch

from dalle import bundled, checkpoint
from dalle.checkpoint import CheckpointError
from dalle.data.drawings.config import DrawingsConfig
from dalle.sampling.components import find_components
from dalle.sampling.export import ExportOptions, export_checkpoint, export_pipeline, without_local_paths
from dalle.sampling.model_card import strictest_licence, write_model_card
from dalle.sampling.pipeline import DALLE
from dalle.weights_files import read_weights, weights_files, write_weights

CAPTION = "a red circle"


def test_exported_models_are_the_same_in_fewer_bytes(checkpoints, tmp_path):
    written = export_pipeline(checkpoints, tmp_path / "out", ExportOptions(torch.bfloat16, max_shard_bytes=12_000))
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
    export_pipeline(checkpoints, tmp_path / "out", ExportOptions(torch.float32, max_shard_bytes=10**6))
    results = [DALLE.load(folder).generate(CAPTION, candidates=3, keep=3) for folder in (checkpoints, tmp_path / "out")]
    assert results[0].scores == results[1].scores
    assert [image.tobytes() for image in results[0].images] == [image.tobytes() for image in results[1].images]


def test_the_record_of_the_data_has_no_absolute_paths():
    meta = {"data": {"name": "drawings", "path": "/home/me/drawings"}, "init": {"path": "/home/me/base", "digest": "1"}}
    clean = without_local_paths(meta)
    assert clean["data"]["path"] == DrawingsConfig.path
    assert clean["init"]["path"] == "base"
    assert meta["data"]["path"] == "/home/me/drawings"
    paths = {"path": "~/train", "captions": "/home/me/captions.json", "opt_out": "/home/me/opt_out.txt"}
    assert without_local_paths({"data": {"name": "coco", **paths, "image_size": 64}})["data"] == {
        "name": "coco",
        **dict.fromkeys(paths, ""),
        "image_size": 64,
    }
    assert without_local_paths({"data": {"name": "folder", "path": "pictures"}})["data"]["path"] == "pictures"
    assert without_local_paths({"step": 3}) == {"step": 3}


def test_prepare_exports_a_checkpoint(prepare, checkpoints, tmp_path):
    status, printed = prepare(f"export={checkpoints}", "out=mine")
    assert status == 0, printed
    assert "mine/README.md" in printed
    assert DALLE.load(tmp_path / "mine").transformer.config == DALLE.load(checkpoints).transformer.config
    status, printed = prepare(f"export={checkpoints}", "out=mine")
    assert (status, "mine exists and is not an empty folder" in printed) == (2, True)
    status, printed = prepare(f"export={checkpoints}", "out=other", "dtype=int8")
    assert (status, "dtype=int8 is unknown; choose float32 or bfloat16" in printed) == (2, True)
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
    (tmp_path / "shapes/judge").mkdir(parents=True)  # a data set of the same name, with a judge trained on it
    (tmp_path / "shapes/judge" / checkpoint.CONFIG).write_text("{}")
    assert bundled.checkpoint_folder("shapes") == packaged
    shutil.rmtree(tmp_path / "shapes")
    shutil.copytree(checkpoints, tmp_path / "shapes")
    assert bundled.checkpoint_folder("shapes").resolve() == tmp_path / "shapes"


def test_the_meta_of_an_exported_transformer_names_the_exported_dvae(checkpoints, tmp_path):
    written = export_pipeline(checkpoints, tmp_path / "out")
    meta = json.loads((written["transformer"] / checkpoint.CONFIG).read_text())["meta"]
    assert meta["dvae"] == {"path": "../dvae", "digest": checkpoint.digest(written["dvae"])}


def test_a_dvae_in_several_files_is_still_the_one_that_others_were_trained_on(checkpoints, decoder_folder, tmp_path):
    dvae = tmp_path / "dvae"
    export_checkpoint(checkpoints / "dvae", dvae, ExportOptions(max_shard_bytes=12_000))
    assert len(weights_files(dvae)) > 1
    assert checkpoint.digest(dvae) == checkpoint.digest(checkpoints / "dvae")
    assert find_components(checkpoints, dvae, decoder=decoder_folder)["dvae"] == dvae
    weights = read_weights(dvae)
    next(iter(weights.values())).view(-1)[0] += 1
    write_weights(dvae, weights, 12_000)
    with pytest.raises(CheckpointError, match="was trained on the tokens of dVAE"):
        find_components(checkpoints, dvae)


AUTHORS = [
    {"set": "one", "author": "Ann", "licence": "MIT", "url": "https://example.org"},
    {"set": "two", "author": "Bo", "licence": "CC-BY-SA-4.0", "url": ""},
]


def test_the_model_card_names_data_authors_licence_and_figures(checkpoints, tmp_path):
    source, notes = tmp_path / "source", "## Limits\nNone are known."
    shutil.copytree(checkpoints, source)
    path = source / "transformer" / checkpoint.CONFIG
    content = json.loads(path.read_text())
    data = {"name": "drawings", "path": "/home/me/x", "image_size": 128}
    records = {"train": {"records": 1234, "digest": "abc", "left_out": {}}}
    content["meta"] |= {"step": 500, "seed": 3, "data": data, "records": records, "attributions": AUTHORS}
    path.write_text(json.dumps(content))
    written = export_pipeline(source, tmp_path / "out")
    write_model_card(tmp_path / "out", written, {"image_nll": 1.25}, notes)

    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-sa-4.0\n")
    for part in (
        "| transformer | train | 1,234 | `abc` |",
        "[Ann](https://example.org)",
        "| image_nll | 1.25 |",
        "model = DALLE.from_pretrained(",
        "seed 3",
        notes,
    ):
        assert part in card
    assert "/home/me" not in card
    parameters = sum(tensor.numel() for tensor in read_weights(source / "transformer").values())
    assert f"| transformer | {parameters:,} | " in card
    assert "- one, Ann, MIT, https://example.org\n- two, Bo, CC-BY-SA-4.0\n" in (tmp_path / "out/NOTICE").read_text()
    assert "CC BY-SA 4.0" in (tmp_path / "out/LICENSE").read_text()


def test_the_model_card_has_the_recipe_of_each_run_and_the_limits(checkpoints, tmp_path):
    source = shutil.copytree(checkpoints, tmp_path / "source")
    path = source / "transformer" / checkpoint.CONFIG
    content = json.loads(path.read_text())
    content["meta"] |= {"data": {"name": "blocks", "image_size": 8}, "caption_words": ["red", "circle"]}
    path.write_text(json.dumps(content))
    rate = "{kind: cosine, start: 0.002, end: 0.0001, steps: 1700}"
    stage = f"{{steps: 2000, batch_size: 32, precision: bfloat16, optimizer: {{kind: muon, learning_rate: {rate}}}}}"
    (source / "transformer" / "config.yaml").write_text(f"stage: {stage}\n")
    (source / "clip" / "config.yaml").write_text("stage: [\n")  # damaged: it has no recipe
    export_checkpoint(source, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "| transformer | 2,000 | 32 | muon | 0.002 to 0.0001 (cosine) | bfloat16 |  |\n" in card
    assert "| clip | 2" not in card
    limit = DALLE.load(tmp_path / "out").transformer.sequence.caption_limit
    assert f"A caption has at most {limit} tokens." in card
    assert "images of 8 x 8 pixels" in card and "2 different words" in card
    assert "None were measured: run evaluate.py" in card


def test_models_without_authors_to_name_have_no_licence_of_their_own(checkpoints, tmp_path):
    write_model_card(tmp_path, find_components(checkpoints), {})
    assert {path.name for path in tmp_path.iterdir()} == {"README.md"}
    assert "license" not in (tmp_path / "README.md").read_text().lower()


@pytest.mark.parametrize(
    ("licences", "strictest"),
    [
        (["MIT", "CC0-1.0"], ""),
        (["MIT", "CC-BY-4.0"], "CC BY 4.0"),
        (["CC-BY-SA-3.0", "CC-BY-4.0"], "CC BY-SA 4.0"),
        ([], ""),
    ],
)
def test_weights_carry_the_strictest_licence_of_their_data(licences, strictest):
    assert strictest_licence([{"licence": licence} for licence in licences]) == strictest


@pytest.mark.parametrize(
    "meta",
    [
        {"init": {}},
        {"data": {"image_size": 8}},
        {"data": {"path": "~nouser/x"}},
        {"attributions": [{}]},
        {"step": "x"},
        {"records": 3},
        {"records": {"train": 3}},
    ],
    ids=str,
)
def test_a_checkpoint_with_incomplete_metadata_is_exported(checkpoints, tmp_path, meta):
    source = tmp_path / "dvae"
    shutil.copytree(checkpoints / "dvae", source)
    content = json.loads((source / checkpoint.CONFIG).read_text())
    (source / checkpoint.CONFIG).write_text(json.dumps(content | {"meta": meta}))
    export_checkpoint(source, tmp_path / "out")
    written = checkpoint.read_json(tmp_path / "out" / checkpoint.CONFIG)["meta"]
    assert "nouser" not in str(written)


def test_metadata_of_other_types_are_refused(checkpoints, tmp_path):
    source = tmp_path / "dvae"
    shutil.copytree(checkpoints / "dvae", source)
    content = json.loads((source / checkpoint.CONFIG).read_text())
    for meta in ({"init": {"path": 3}}, {"data": [1]}, {"attributions": ["x"]}):
        (source / checkpoint.CONFIG).write_text(json.dumps(content | {"meta": meta}))
        with pytest.raises(CheckpointError, match=r"config.json: meta\."):
            export_checkpoint(source, tmp_path / "out")
