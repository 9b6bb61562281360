"""init=: a run starts from the weights of another checkpoint, and keeps its tokenizer and its dVAE."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from init_runs import FROZEN, MODELS, everything, of, same, tiny, weights

from dalle import checkpoint
from dalle.clip_tokenizer import CLIPTokenizer
from dalle.data import open_source
from dalle.data.blocks import BlocksConfig
from dalle.models.clip.model import CLIP, CLIPConfig
from dalle.pretrained.openai_dvae import convolution_mappings
from dalle.stages.data_module import DataModule
from dalle.training import state_files

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("stage", MODELS)
def test_run_starts_from_init_weights_at_step_0(train, base, stage):
    status, printed = train(*of(stage, f"init=base/{stage}", *FROZEN, "stage.optimizer.weight_decay=0", "run=tuned"))
    assert status == 0, printed
    assert f"starts from the weights of base/{stage}, digest {checkpoint.digest(base / stage)}" in printed
    assert "steps 0 to 2" in printed
    began = weights(base / stage)
    assert same(began, weights(f"outputs/{stage}/tuned")) == set(began)  # the averaged weights, which are saved
    _, tensors, _ = state_files.load_state(f"outputs/{stage}/tuned")
    model = {name.removeprefix("model."): weight for name, weight in tensors.items() if name.startswith("model.")}
    assert same(began, model) == set(began)
    moments = {tensor.item() for name, tensor in tensors.items() if name.startswith("optimizer.step.")}
    assert moments == {2.0}  # the optimizer is a fresh one


def test_ema_starts_from_init_weights(train, base):
    average = ["stage.ema.decay=0.9", "stage.ema.warmup=false", "stage.optimizer.learning_rate.start=1e-2"]
    assert train(*of("dvae", "init=base/dvae", *average))[0] == 0
    began, averaged = weights(base / "dvae"), weights("outputs/dvae/default")
    _, tensors, _ = state_files.load_state("outputs/dvae/default")
    name = "decoder.output.weight"
    moved = tensors[f"model.{name}"] - began[name]
    assert 0 < (averaged[name] - began[name]).norm() < 0.3 * moved.norm()


def test_data_are_not_drawn_as_in_the_run_that_is_continued(train, base, monkeypatch):
    """A second pass over the same crops in the same order would be memorized."""
    orders: dict[str, list[str]] = {}

    def batches(self, start):
        for batch in drawn(self, start):
            orders[run].extend(batch.keys)
            yield batch

    drawn = DataModule.batches
    monkeypatch.setattr(DataModule, "batches", batches)
    for run, more in {
        "first": [],
        "again": [],
        "continued": ["init=base"],
        "further": ["init=outputs/dvae/continued"],
    }.items():
        orders[run] = []
        assert train(*of("dvae", f"run={run}", *more))[0] == 0
    assert orders["first"] == orders["again"]
    assert len({tuple(orders[run]) for run in ("first", "continued", "further")}) == 3


def test_folder_of_all_three_models_works_for_one_stage(train, base):
    status, printed = train(*of("clip", "init=base"))
    assert status == 0, printed
    assert "starts from the weights of base/clip" in printed


@pytest.mark.parametrize("stage", ["clip", "transformer"])
def test_tokenizer_is_copied_from_init(train, base, stage):
    # other data would give other merges, and as few as 280 entries would be allowed
    overrides = ["data.train=8", "seed=5", "stage.model.text_vocabulary=280", f"init=base/{stage}"]
    status, printed = train(*of(stage, *overrides))
    assert status == 0, printed
    kept, first = (
        checkpoint.read_json(folder / checkpoint.TOKENIZER)
        for folder in (Path(f"outputs/{stage}/default"), base / stage)
    )
    assert kept == first
    config, meta = checkpoint.read_config(f"outputs/{stage}/default", stage)
    assert config["text_vocabulary"] == checkpoint.read_config(base / stage, stage)[0]["text_vocabulary"] > 282
    before = set(checkpoint.read_config(base / stage, stage)[1]["caption_words"])
    assert before < set(meta["caption_words"]) or before == set(meta["caption_words"])


def test_dvae_is_that_of_init_unless_given(train, base):
    assert train(*of("transformer", "init=base/transformer"))[0] == 0
    _, meta = checkpoint.read_config("outputs/transformer/default", "transformer")
    assert meta["dvae"]["digest"] == checkpoint.digest(base / "dvae")
    assert "dvae: base/" in Path("outputs/transformer/default/config.yaml").read_text()


def test_each_stage_of_all_starts_from_its_part_of_init(train, base):
    status, printed = train(*everything("tuned", "init=base"))
    assert status == 0, printed
    for stage in MODELS:
        assert f"outputs/tuned/{stage}: starts from the weights of base/{stage}" in printed
        _, meta = checkpoint.read_config(f"outputs/tuned/{stage}", stage)
        assert meta["init"] == {"path": f"../../../base/{stage}", "digest": checkpoint.digest(base / stage)}
    status, printed = train(*everything("tuned", "init=base"))
    assert (status, printed.count("finished, 2 updates done")) == (0, 3)


def test_init_is_recorded_as_a_source(train, prepare, base):
    train(*of("dvae", "init=base"))
    folder = Path("outputs/dvae/default")
    _, meta = checkpoint.read_config(folder, "dvae")
    assert meta["init"] == {"path": "../../../base/dvae", "digest": checkpoint.digest(base / "dvae")}
    assert "init: base" in (folder / "config.yaml").read_text()
    _, printed = prepare(f"sources={folder}")
    assert f"started from base/dvae, digest {meta['init']['digest']}, whose training data count as well" in printed
    base.rename("elsewhere")
    _, printed = prepare(f"sources={folder}")
    assert f"started from ../../../base/dvae, digest {meta['init']['digest']}" in printed


@pytest.mark.parametrize("stage", MODELS)
def test_run_resumes_bitwise_without_reading_init_again(train, base, stage):
    tune = [
        *of(stage, "init=base", "data.train=16", "stage.optimizer.learning_rate.steps=3"),
        *([f"dvae={base.parent / 'dvae'}"] if stage == "transformer" else []),
    ]
    shutil.copytree(base / "dvae", base.parent / "dvae")
    assert train(*tune, "run=whole", "stage.steps=3")[0] == 0
    assert train(*tune, "run=parts")[0] == 0
    shutil.rmtree(base)
    status, printed = train(*tune, "run=parts", "stage.steps=3")
    assert status == 0, printed
    assert "steps 2 to 3" in printed
    assert "starts from" not in printed
    whole, parts = (state_files.load_state(f"outputs/{stage}/{run}") for run in ("whole", "parts"))
    assert all(tensor.equal(parts[1][name]) for name, tensor in whole[1].items())
    files = [(Path(f"outputs/{stage}") / run / checkpoint.CONFIG).read_text() for run in ("whole", "parts")]
    assert files[0] == files[1]


def test_transformer_resumes_with_the_dvae_of_init(train, base):
    train(*of("transformer", "init=base"))
    shutil.rmtree(base / "transformer")
    status, printed = train(*of("transformer", "init=base", "stage.steps=3"))
    assert (status, "steps 2 to 3" in printed) == (0, True), printed


@pytest.mark.slow
def test_two_ranks_start_from_init(base, tmp_path):
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(ROOT / "train.py"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*launch, *of("clip", "init=base", *FROZEN, "stage.optimizer.weight_decay=0")]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=300)
    began = weights(base / "clip")
    assert same(began, weights(tmp_path / "outputs/clip/default")) == set(began)


def test_imported_clip_keeps_its_tokenizer(train, tmp_path):
    (tmp_path / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\nc i\n")
    tokenizer = CLIPTokenizer.from_merges(tmp_path / "merges.txt", 517)  # as prepare.py import=openai-clip
    sizes = {name: int(value) for name, value in (setting.split("=") for setting in MODELS["clip"].split())}
    sizes |= {"image_size": 16, "text_vocabulary": 517}
    clip = CLIP(CLIPConfig(**sizes, tokenizer="openai", end_id=516, crop_rounding="even"), tokenizer)
    clip.save(tmp_path / "imported", {"imported": "openai-clip"})
    status, printed = train(*of("clip", "init=imported"))
    assert (status, "Add stage.model.crop_rounding=even, or" in printed) == (2, True), printed
    for steps in (2, 3):
        status, printed = train(*of("clip", "init=imported", "stage.model.crop_rounding=even", f"stage.steps={steps}"))
        assert status == 0, printed
    tuned = CLIP.load("outputs/clip/default")
    assert (tuned.config.tokenizer, tuned.config.text_vocabulary, tuned.config.end_id) == ("openai", 517, 516)
    assert tuned.tokenize(["a red circle"]).equal(clip.tokenize(["a red circle"]))


def test_imported_dvae_can_be_fine_tuned(train, prepare, tmp_path):
    sizes = {"width": 8, "vocabulary": 20, "decoder_input": 12, "groups": 4, "blocks_per_group": 1}
    for half in ("encoder", "decoder"):
        state = {}
        for convolution in convolution_mappings(half, sizes):
            state |= {
                f"{convolution.source}.w": torch.randn(convolution.shape),
                f"{convolution.source}.b": torch.randn(convolution.shape[0]),
            }
        torch.save(state, tmp_path / f"{half}.pkl")
    assert prepare("import=openai-dvae", "out=imported")[0] == 0
    model = [f"stage.model.{name}={value}" for name, value in sizes.items()]
    still = [*FROZEN, "stage.optimizer.weight_decay=0"]
    status, printed = train(*of("dvae", "init=imported", "stage.model.gain=null", *model, *still))
    assert status == 0, printed
    began = weights("imported")
    assert same(began, weights("outputs/dvae/default")) == set(began)


@pytest.mark.slow
def test_fine_tuning_beats_training_from_scratch_on_fifty_images(train, tmp_path):
    """About 50 images, and as many held out, of colours and shapes that the base model never saw together."""
    own = tmp_path / "own"
    own.mkdir()
    images = open_source(BlocksConfig(image_size=16, novel=100), "novel")
    for index in range(100):
        record = images[index]
        record.image.save(own / f"{index:03}.png")
        (own / f"{index:03}.txt").write_text("\n".join(record.captions))
    common = ["data.image_size=16", "device=cpu", "wandb.mode=disabled"]
    rate = ["stage.optimizer.learning_rate.start=3e-3", "stage.optimizer.warmup_steps=10"]
    # the likelihood and KL weight of preset=tiny, with which the codebook does not collapse
    dvae = "model.vocabulary=32 model.width=16 likelihood.kind=normal likelihood.scale=0.1 clip_norm=1 batch_size=16"
    dvae += (
        " kl_weight.start=25 kl_weight.end=0 temperature.end=0.4 steps=300 kl_weight.steps=300 temperature.steps=300"
    )
    small = {
        "dvae": [*tiny("dvae"), *(f"stage.{setting}" for setting in dvae.split())],
        "transformer": [*tiny("transformer"), "stage.model.width=64", "stage.model.heads=4", "stage.bpe_dropout=0"],
    }

    def held_out_loss(run: str, *more: str) -> float:
        lengths = ["stage.batch_size=16", "stage.validation_images=100", "stage.ema.decay=0.9", "stage.ema.every=1"]
        status, printed = train(
            "stage=transformer", f"run={run}", *common, *small["transformer"], *rate, *lengths, *more
        )
        assert status == 0, printed
        lines = Path(f"outputs/transformer/{run}/metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines if '"val"' in line][-1]["loss"]

    blocks = ["data=blocks", "data.train=2000", "data.val=64"]
    assert train("stage=dvae", *common, *small["dvae"], *blocks, *rate)[0] == 0
    held_out_loss("base", *blocks, "dvae=outputs/dvae/default", "stage.steps=600")
    for seed in (0, 1):
        mine = ["data=folder", f"data.path={own}", "data.validation_share=0.5", f"seed={seed}", "stage.steps=40"]
        tuned = held_out_loss(f"tuned{seed}", *mine, "init=outputs/transformer/base")
        scratch = held_out_loss(
            f"scratch{seed}",
            *mine,
            "dvae=outputs/dvae/default",
            "stage.tokenizer=outputs/transformer/base/tokenizer.json",  # so that losses of the text are comparable
        )
        print(f"seed {seed}: tuned {tuned:.3f}, scratch {scratch:.3f}")
        assert tuned < 0.9 * scratch  # 0.79 when this was written
