"""Models are published to the hub and loaded from it by name, revision and cache; tested with a local stand-in."""

import json
from pathlib import Path

import pytest
import torch

from dalle import CLIP, DALLE, DiscreteVAE, checkpoint, hub, push_to_hub
from dalle.checkpoint import CheckpointError
from dalle.sampling.export import ExportOptions

huggingface_hub = pytest.importorskip("huggingface_hub")
CAPTION = "a red circle"
FLOAT32 = ExportOptions(torch.float32)


def test_a_published_pipeline_draws_the_same_images(hub_server, checkpoints):
    address = push_to_hub(checkpoints, "me/shapes", options=FLOAT32)
    assert address.startswith(f"{hub_server.address}/me/shapes/commit/")
    assert {"README.md", "dvae/config.json", "transformer/tokenizer.json"} <= set(
        hub_server.repositories["me/shapes"]["main"]
    )
    loaded, original = DALLE.from_pretrained("me/shapes"), DALLE.load(checkpoints)
    results = [pipeline.generate(CAPTION, candidates=2, keep=2) for pipeline in (loaded, original)]
    assert results[0].scores == results[1].scores
    assert [image.tobytes() for image in results[0].images] == [image.tobytes() for image in results[1].images]
    assert DALLE.from_pretrained(checkpoints).words == original.words  # a folder works too


def test_a_loaded_pipeline_is_published_with_all_its_parts(hub_server, checkpoints):
    original = DALLE.load(checkpoints)
    original.push_to_hub("me/shapes", options=FLOAT32)
    results = [
        pipeline.generate(CAPTION, candidates=2, keep=2) for pipeline in (DALLE.from_pretrained("me/shapes"), original)
    ]
    assert results[0].scores == results[1].scores is not None
    assert [image.tobytes() for image in results[0].images] == [image.tobytes() for image in results[1].images]
    built = DALLE(original.dvae, original.transformer, original.tokenizer)
    with pytest.raises(ValueError, match="only a DALLE that was loaded from checkpoints can be uploaded"):
        built.push_to_hub("me/shapes")


def test_a_dvae_and_a_clip_are_published_alone_or_found_in_a_pipeline(hub_server, checkpoints):
    push_to_hub(checkpoints, "me/shapes", options=FLOAT32)
    push_to_hub(checkpoints / "dvae", "me/codes")
    push_to_hub(checkpoints / "clip", "me/scorer", options=FLOAT32)
    for name in ("me/codes", "me/shapes"):
        loaded = DiscreteVAE.from_pretrained(name).state_dict()
        expected = DiscreteVAE.load(checkpoints / "dvae").state_dict()
        assert all(loaded[key].equal(tensor) for key, tensor in expected.items())
    for name in ("me/scorer", "me/shapes"):
        loaded = CLIP.from_pretrained(name).state_dict()
        expected = CLIP.load(checkpoints / "clip").state_dict()
        assert all(loaded[key].equal(tensor) for key, tensor in expected.items())


def test_revisions_can_be_pinned(hub_server, checkpoints):
    push_to_hub(checkpoints / "dvae", "me/codes")
    push_to_hub(checkpoints / "dvae", "me/codes", revision="first")  # a branch that stays as it is
    commit = huggingface_hub.HfApi().model_info("me/codes").sha
    hub_server.repositories["me/codes"]["main"]["config.json"] = b"{}"
    with pytest.raises(CheckpointError, match="does not describe a checkpoint"):
        DiscreteVAE.from_pretrained("me/codes")
    for revision in ("first", commit):
        assert DiscreteVAE.from_pretrained("me/codes", revision=revision).vocabulary
    with pytest.raises(CheckpointError, match="me/codes has no revision second: give a branch, a tag or a commit"):
        DiscreteVAE.from_pretrained("me/codes", revision="second")


def test_a_second_upload_replaces_the_models_of_the_first(hub_server, checkpoints):
    branch = lambda: hub_server.repositories["me/codes"]["main"]  # noqa: E731
    push_to_hub(checkpoints, "me/codes")
    branch()["dvae/notes.md"] = branch()["LICENSE"] = branch()["clip/NOTICE"] = b"mine"
    push_to_hub(checkpoints / "clip", "me/codes")
    assert set(branch()) == {"README.md", "config.json", "model.safetensors", "tokenizer.json", "dvae/notes.md"}
    push_to_hub(checkpoints / "dvae", "me/codes", options=ExportOptions(max_shard_bytes=8000))
    assert not {"model.safetensors", "tokenizer.json"} & set(branch())
    loaded, expected = DiscreteVAE.from_pretrained("me/codes"), DiscreteVAE.load(checkpoints / "dvae")
    assert all(loaded.state_dict()[key].equal(tensor) for key, tensor in expected.state_dict().items())
    push_to_hub(checkpoints / "dvae", "me/codes")
    assert set(branch()) == {"README.md", "config.json", "model.safetensors", "dvae/notes.md"}


def test_only_data_files_are_downloaded(hub_server, checkpoints):
    push_to_hub(checkpoints / "dvae", "me/codes")
    hub_server.repositories["me/codes"]["main"] |= {"pytorch_model.bin": b"pickle", "setup.py": b"raise SystemExit"}
    DiscreteVAE.from_pretrained("me/codes")
    assert set(hub_server.requested) == {"model.safetensors", "config.json", "README.md"}


def test_nothing_is_requested_for_a_folder(checkpoints, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("downloaded"))
    assert (
        DiscreteVAE.from_pretrained(checkpoints).vocabulary
        == DiscreteVAE.from_pretrained(checkpoints / "dvae").vocabulary
    )
    with pytest.raises(CheckpointError, match="is a folder, which has no revision main"):
        DiscreteVAE.from_pretrained(checkpoints, revision="main")


def test_a_downloaded_model_is_used_without_network(hub_server, checkpoints):
    push_to_hub(checkpoints / "dvae", "me/codes")
    first = hub.local_folder("me/codes")
    hub_server.shutdown()
    hub_server.server_close()
    assert hub.local_folder("me/codes") == first
    with pytest.raises(
        CheckpointError,
        match="cannot be reached for me/other, which is not a folder and was not downloaded before: check",
    ):
        hub.local_folder("me/other")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("me/typo", "there is no model me/typo on .* and no such folder, or it is private: check the spelling"),
        ("typo", "there is no model typo: give a folder, .*user/name of a model on the Hugging Face Hub"),
        ("a/b/c", "there is no model a/b/c: give a folder"),
        ("a/b.git", "a/b.git is not the name of a repository on the hub"),
        ("a/..b", "a/..b is not the name of a repository on the hub"),
        ("-a/b", "-a/b is not the name of a repository on the hub"),
        ("", "the name of the model is empty"),
    ],
)
def test_unknown_names_raise_one_sentence(hub_server, name, message):
    with pytest.raises(CheckpointError, match=message):
        DALLE.from_pretrained(name)


@pytest.mark.parametrize(("name", "first"), [("outputs/demo", "outputs"), ("drawings/foo", "drawings")])
def test_a_local_path_with_a_typo_is_not_asked_for_on_the_hub(
    hub_server, checkpoints, tmp_path, monkeypatch, name, first
):
    push_to_hub(checkpoints / "dvae", name)  # somebody's model of this name
    monkeypatch.chdir(tmp_path)
    Path("outputs").mkdir()
    with pytest.raises(CheckpointError, match=f"there is no folder {name}; .*since {first} is a local name"):
        DiscreteVAE.from_pretrained(name)


def test_publishing_needs_a_login(hub_server, checkpoints, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(CheckpointError, match="does not let you write to me/codes: run hf auth login"):
        push_to_hub(checkpoints / "dvae", "me/codes")
    with pytest.raises(CheckpointError, match="codes is not the name of a repository on the hub: write user/name"):
        push_to_hub(checkpoints / "dvae", "codes")


def test_a_refused_download_is_not_called_an_upload(hub_server, monkeypatch):
    httpx = pytest.importorskip("httpx")

    def refuse(*_: object, **__: object) -> None:
        response = httpx.Response(403, request=httpx.Request("GET", hub_server.address))
        raise huggingface_hub.errors.HfHubHTTPError("refused", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="does not let you read me/codes: run hf auth login"):
        DiscreteVAE.from_pretrained("me/codes")


def test_a_damaged_download_is_reported(hub_server, checkpoints):
    push_to_hub(checkpoints / "dvae", "me/codes")
    files = hub_server.repositories["me/codes"]["main"]
    files["model.safetensors"] = files["model.safetensors"][:-100]
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        DiscreteVAE.from_pretrained("me/codes")


def test_prepare_publishes_an_export(hub_server, prepare, checkpoints, tmp_path):
    status, printed = prepare(f"export={checkpoints}", "out=mine", "push=me/shapes", "dtype=float32")
    assert status == 0, printed
    assert f"uploaded  {hub_server.address}/me/shapes/commit/" in printed
    published = json.loads(hub_server.repositories["me/shapes"]["main"]["clip/config.json"])
    assert published == checkpoint.read_json(tmp_path / "mine" / "clip" / "config.json")


def test_prepare_checks_the_upload_before_it_exports(hub_server, prepare, checkpoints, tmp_path, monkeypatch):
    status, printed = prepare(f"export={checkpoints}", "out=mine", "push=shapes")
    assert (status, printed) == (2, "push=shapes is not the name of a repository on the hub: write user/name\n")
    with monkeypatch.context() as logged_out:
        logged_out.setattr(huggingface_hub, "get_token", lambda: None)
        status, printed = prepare(f"export={checkpoints}", "out=mine", "push=me/shapes")
    sentence = "push=me/shapes needs a login: run hf auth login with a token that may write\n"
    assert (status, printed) == (2, sentence)
    assert not (tmp_path / "mine").exists()


def test_prepare_can_be_run_again_after_a_failed_upload(hub_server, prepare, checkpoints, tmp_path, monkeypatch):
    command = (f"export={checkpoints}", "out=mine", "push=me/shapes")
    with monkeypatch.context() as wrong:
        wrong.setenv("HF_TOKEN", "wrong")
        status, printed = prepare(*command)
    assert status == 2
    assert "does not let you write to me/shapes" in printed
    assert not (tmp_path / "mine").exists()
    status, printed = prepare(*command)
    assert status == 0, printed
