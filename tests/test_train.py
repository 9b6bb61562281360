"""train.py from the command line: run folders, resuming, overwriting, and all stages in sequence."""

import json
import shutil

import pytest
import torch
from PIL import Image

from dalle import checkpoint
from dalle.data.folder import FolderSource
from dalle.training import state_files

TINY_DVAE = "vocabulary=8 width=8 decoder_input=8 blocks_per_group=1"
TINY_CLIP = (
    "patch=8 image_width=16 image_depth=1 image_heads=2 text_vocabulary=300 text_positions=40 "
    "text_width=16 text_depth=1 text_heads=2 embedding=16"
)
TINY_TRANSFORMER = "text_positions=40 text_vocabulary=300 width=16 depth=2 heads=2 kernel=3"
MODELS = {"dvae": TINY_DVAE, "clip": TINY_CLIP, "transformer": TINY_TRANSFORMER}
COMMON = ["data.image_size=32", "device=cpu", "wandb.mode=disabled"]


def tiny(prefix, model, steps=2):
    """Return the smallest settings of the stage at `prefix`."""
    settings = {"steps": steps, "batch_size": 4, "workers": 0, "validation_images": 4, "precision": "float32"}
    return [
        *(f"{prefix}.{name}={value}" for name, value in settings.items()),
        *(f"{prefix}.model.{setting}" for setting in model.split()),
    ]


DVAE = [*COMMON, *tiny("stage", TINY_DVAE)]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Folder for the outputs of a dVAE, which is trained once."""
    return tmp_path_factory.mktemp("dvae") / "outputs"


@pytest.fixture
def trained(train, kept, tmp_path):
    """Train a dVAE for two updates. Returns the run's folder."""
    if not kept.exists():
        status, printed = train(*DVAE)
        assert status == 0, printed
        shutil.copytree(tmp_path / "outputs", kept)
    else:
        shutil.copytree(kept, tmp_path / "outputs")
    return tmp_path / "outputs" / "dvae" / "default"


def test_run_folder_has_config_metrics_and_checkpoint(train, tmp_path):
    status, printed = train(*DVAE, "run=mine", "seed=5")
    folder = tmp_path / "outputs" / "dvae" / "mine"
    assert status == 0
    assert "steps 0 to 2" in printed
    assert {"config.yaml", "metrics.jsonl", "model.safetensors", "config.json", "state"} <= {
        path.name for path in folder.iterdir()
    }
    assert "width: 8" in (folder / "config.yaml").read_text()
    _, meta = checkpoint.read_config(folder, "dvae")
    assert meta["step"] == 2
    assert meta["seed"] == 5


def test_finished_run_is_not_repeated_and_can_be_extended(train, trained):
    folder = trained
    first = checkpoint.digest(folder)
    status, printed = train(*DVAE)
    assert (status, checkpoint.digest(folder)) == (0, first)
    assert "finished, 2 updates done" in printed
    assert "steps 2 to 3" in train(*DVAE, "stage.steps=3")[1]
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 2, 3, 3]  # train and val


def test_a_longer_run_extends_schedules_that_end_with_it_and_says_so(train):
    clip = [*COMMON, "stage=clip", *tiny("stage", MODELS["clip"]), "stage.tokenizer_records=50", "stage.log_every=1"]
    changes = "stage.optimizer.learning_rate.steps 4 instead of 2, stage.steps 4 instead of 2"
    assert "instead of" not in train(*clip)[1]
    assert f"outputs/clip/default: resumes with {changes}" in train(*clip, "stage.steps=4")[1].splitlines()
    status, printed = train(*clip, "stage.steps=8", "stage.optimizer.learning_rate.steps=4")
    assert (status, "learning_rate.steps 4 instead" in printed) == (0, False)
    warning = "the schedule of the learning rate ends after 4 updates, the run after 8; with"
    assert f"outputs/clip/default: {warning} optimizer.learning_rate.steps=null both end together" in printed
    status, printed = train(*clip, "stage.steps=10", "stage.optimizer.learning_rate.steps=5")
    assert (status, "stage.optimizer.learning_rate.steps was 4, now 5" in printed) == (2, True)


@pytest.mark.parametrize("mode", ["ddp", "fsdp", "hsdp"])
def test_one_process_says_that_it_does_not_shard(train, trained, mode):
    status, printed = train(*DVAE, f"distributed={mode}")
    assert status == 0, printed
    line = f"distributed={mode}: weights are not sharded with one process; start several with torchrun"
    assert printed.splitlines().count(line) == (mode != "ddp")


def test_changed_settings_raise_unless_resume_is_false(train, trained):
    folder = trained
    first = checkpoint.digest(folder)
    status, printed = train(*DVAE, "seed=1")
    assert status == 2
    assert "seed was 0, now 1" in printed
    status, printed = train(*DVAE, "seed=1", "resume=false")
    assert status == 0
    assert "the previous run is now in outputs/dvae/default.1" in printed
    assert checkpoint.digest(folder.with_name("default.1")) == first != checkpoint.digest(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["world=8"], "world and card are of plans only: add plan=true"),
        (["card=h200"], "world and card are of plans only: add plan=true"),
        (["timeout_minutes=0"], "timeout_minutes=0.0 must be above 0"),
        (["init_strict=false"], "init_strict=false needs init, the checkpoint whose tensors are loaded"),
        (["dvae=outputs/dvae/default"], "stage=dvae needs no dVAE: leave dvae=outputs/dvae/default out"),
    ],
)
def test_options_without_effect_are_refused(train, trained, options, message):
    status, printed = train(*DVAE, "run=other", *options)
    assert (status, message in printed) == (2, True)
    assert not trained.with_name("other").exists()


@pytest.mark.parametrize("stage", ["dvae", "all"])
@pytest.mark.parametrize("run", ["", ".", "..", "../x", "a/../..", "/x"])
def test_a_run_outside_the_folder_of_runs_is_refused(train, trained, tmp_path, stage, run):
    before = sorted(tmp_path.rglob("*"))
    status, printed = train(f"stage={stage}", *COMMON, f"run={run}", "resume=false")
    assert status == 2
    assert f"run={run} does not name a folder in outputs" in printed
    assert sorted(tmp_path.rglob("*")) == before


def test_run_without_a_newer_setting_resumes_with_its_default(train, trained):
    (path,) = trained.glob("state/*/state.json")
    state = json.loads(path.read_text())
    del state["identity"]["stage"]["optimizer"]["kind"]
    path.write_text(json.dumps(state))
    status, printed = train(*DVAE, "stage.steps=3", "stage.optimizer.kind=muon")
    assert (status, "stage.optimizer.kind was adamw, now muon" in printed) == (2, True)
    assert train(*DVAE, "stage.steps=3")[0] == 0


def test_micro_batches_may_change_when_a_run_resumes_except_for_clip(train, trained):
    status, printed = train(*DVAE, "stage.steps=3", "stage.accumulate=2")
    assert (status, "steps 2 to 3" in printed) == (0, True)
    line = "outputs/dvae/default: resumes with stage.accumulate 2 instead of 1, stage.steps 3 instead of 2"
    assert line in printed.splitlines()
    clip = [*COMMON, "stage=clip", *tiny("stage", MODELS["clip"]), "stage.tokenizer_records=50"]
    assert train(*clip)[0] == 0
    status, printed = train(*clip, "stage.steps=3", "stage.accumulate=2")
    assert (status, "stage.accumulate was 1, now 2" in printed) == (2, True)


def test_seed_determines_initial_weights(train, tmp_path):
    for run, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(*DVAE, f"run={run}", f"seed={seed}", "stage.steps=1")
    a, b, c = (first_convolution(tmp_path / "outputs" / "dvae" / run) for run in "abc")
    assert torch.equal(a, b)
    assert not torch.allclose(a, c, atol=1e-2)


def first_convolution(folder):
    _, tensors, _ = state_files.load_state(folder)
    return next(tensor for name, tensor in tensors.items() if name.startswith("model.encoder") and tensor.ndim == 4)


@pytest.mark.parametrize("stage", ["dvae", "clip", "transformer"])
def test_every_stage_resumes_bitwise(train, tmp_path, request, stage):
    overrides = [*COMMON, f"stage={stage}", *tiny("stage", MODELS[stage])]
    if stage != "dvae":
        overrides += ["stage.tokenizer_records=50", "stage.accumulate=2"]
    if stage == "transformer":
        request.getfixturevalue("trained")
        overrides += ["dvae=outputs/dvae/default"]
    train(*overrides, "run=whole", "stage.steps=3")
    for steps in (1, 3):  # tests/training/test_resume.py interrupts a run more than once
        train(*overrides, "run=parts", f"stage.steps={steps}")
    whole, parts = (state_files.load_state(tmp_path / "outputs" / stage / run) for run in ("whole", "parts"))
    assert whole[0] == parts[0] == 3
    assert all(torch.equal(tensor, parts[1][name]) for name, tensor in whole[1].items())


def test_all_stages_share_a_folder_and_the_transformer_uses_the_new_dvae(train, tmp_path):
    overrides = [*COMMON, "stage=all", "run=trio", "data.image_size=16"]
    for stage, model in MODELS.items():
        overrides += tiny(f"stage.{stage}", model)
    overrides += [f"stage.{stage}.tokenizer_records=50" for stage in ("clip", "transformer")]
    status, printed = train(*overrides)
    assert status == 0, printed
    folder = tmp_path / "outputs" / "trio"
    assert sorted(path.name for path in folder.iterdir()) == ["clip", "dvae", "transformer"]
    for stage in ("dvae", "clip", "transformer"):
        checkpoint.read_config(folder / stage, stage)
    _, meta = checkpoint.read_config(folder / "transformer", "transformer")
    assert meta["dvae"]["digest"] == checkpoint.digest(folder / "dvae")
    status, printed = train(*overrides)
    assert printed.count("finished, 2 updates done") == 3
    assert 'trio: all stages are finished; next: python sample.py checkpoint=outputs/trio caption="..."' in printed

    before = checkpoint.digest(folder / "dvae")
    status, printed = train(*overrides, "stage.dvae.steps=3")
    assert status == 2
    assert "transformer was trained on the tokens of outputs/trio/dvae after 2 updates" in printed
    assert checkpoint.digest(folder / "dvae") == before

    train(*DVAE, "data.image_size=16", "seed=7", "out=outputs/other", "run=x")
    (folder / "dvae" / "model.safetensors").write_bytes(
        (tmp_path / "outputs/other/dvae/x/model.safetensors").read_bytes()
    )
    status, printed = train(*overrides)
    assert status == 2
    assert "transformer has a run with other settings: dvae was" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["stage.accumulate=3"], "batch_size=4 does not divide into 1 ranks x 3 micro-batches"),
        (["data=folder", "data.path=nowhere"], "nowhere"),
    ],
)
def test_starting_over_with_settings_that_do_not_work_renames_nothing(train, trained, options, message):
    status, printed = train(*DVAE, *options, "resume=false")
    assert (status, message in printed) == (2, True), printed
    assert [path.name for path in trained.parent.iterdir()] == ["default"]


def test_checks_before_training_list_the_records_once(train, tmp_path, monkeypatch):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a black square")
    listings, list_records = [], FolderSource.list_records
    monkeypatch.setattr(FolderSource, "list_records", lambda self: listings.append(self) or list_records(self))
    monkeypatch.setattr("dalle.cli.train.train_stage", lambda *_: None)
    overrides = [*COMMON, "stage=all", "data=folder", f"data.path={folder}", "data.image_size=16"]
    for stage, model in MODELS.items():
        overrides += tiny(f"stage.{stage}", model)
    status, printed = train(*overrides)
    assert status == 0, printed
    assert len(listings) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["stage.transformer.accumulate=3"], "batch_size=4 does not divide into 1 ranks x 3 micro-batches"),
        (["stage.transformer.model.heads=3"], "heads"),
        (["stage.clip.model.text_heads=3"], "heads"),
        (["stage.transformer.also_validate=[other]"], "other"),
    ],
)
def test_all_stages_are_checked_before_the_first_is_trained(train, tmp_path, options, message):
    overrides = [*COMMON, "stage=all"]
    for stage, model in MODELS.items():
        overrides += tiny(f"stage.{stage}", model)
    status, printed = train(*overrides, *options)
    assert (status, message in printed) == (2, True), printed
    assert not list((tmp_path / "outputs").rglob("config.yaml"))


def test_unused_dvae_setting_raises(train):
    status, printed = train("stage=all", "dvae=outputs/dvae/mine")
    assert status == 2
    assert "leave dvae out" in printed


def test_missing_dvae_raises(train):
    status, printed = train("stage=transformer", "dvae=outputs/dvae/mine")
    assert status == 2
    assert "no checkpoint at outputs/dvae/mine" in printed
