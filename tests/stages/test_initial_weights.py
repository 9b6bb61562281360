"""init=: a run starts from the weights of another checkpoint, and keeps its tokenizer and its dVAE."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dalle import checkpoint
from dalle.clip_tokenizer import CLIPTokenizer
from dalle.data import open_source
from dalle.data.blocks import BlocksConfig
from dalle.models.clip.model import CLIP, CLIPConfig
from dalle.pretrained.openai_dvae import convolution_mappings
from dalle.stages.data_module import DataModule
from dalle.tokenizer import CaptionTokenizer
from dalle.weights_files import WEIGHTS

ROOT = Path(__file__).parents[2]
COMMON = ["data.image_size=16", "data.train=32", "data.val=8", "device=cpu", "wandb.mode=disabled"]
MODELS = {
    "dvae": "vocabulary=8 width=8 groups=3 decoder_input=8 blocks_per_group=1 gain=0.5",
    "clip": "patch=8 image_width=16 image_depth=1 image_heads=2 text_vocabulary=300 text_positions=40 text_width=16 "
    "text_depth=1 text_heads=2 embedding=16",
    "transformer": "text_positions=40 text_vocabulary=300 width=16 depth=2 heads=2 kernel=3 initial_scale=0.5",
}


def tiny(stage: str, prefix: str = "stage") -> list[str]:
    """Return the settings of a stage of two updates with 4 images each."""
    settings = {"steps": 2, "batch_size": 4, "workers": 0, "validation_images": 4, "precision": "float32"}
    settings |= {} if stage == "dvae" else {"tokenizer_records": 20}
    return [
        *(f"{prefix}.{name}={value}" for name, value in settings.items()),
        *(f"{prefix}.model.{each}" for each in MODELS[stage].split()),
    ]


def of(stage: str, *more: str) -> list[str]:
    return [*COMMON, f"stage={stage}", *tiny(stage), *more]


# weights stay as they began
FROZEN = ("stage.optimizer.learning_rate.start=0", "stage.optimizer.learning_rate.end=0")


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / WEIGHTS)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    """Return the names of the tensors that are equal in both."""
    return {
        name
        for name in one.keys() & other.keys()
        if one[name].shape == other[name].shape and one[name].equal(other[name])
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder with dvae/, clip/ and transformer/, each trained for two updates with seed 1."""
    folder = tmp_path_factory.mktemp("trained")
    overrides = [
        *COMMON,
        "stage=all",
        "run=first",
        "seed=1",
        *(x for stage in MODELS for x in tiny(stage, f"stage.{stage}")),
    ]
    command = [sys.executable, str(ROOT / "train.py"), *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, check=True, timeout=600, env=environment, capture_output=True)
    return folder / "outputs" / "first"


@pytest.fixture
def base(trained, tmp_path):
    """Return a copy of `trained` that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "base"))


@pytest.mark.parametrize("stage", MODELS)
def test_run_starts_from_init_weights_at_step_0(train, base, stage):
    status, printed = train(*of(stage, f"init=base/{stage}", *FROZEN, "stage.optimizer.weight_decay=0", "run=tuned"))
    assert status == 0, printed
    assert f"starts from the weights of base/{stage}, digest {checkpoint.digest(base / stage)}" in printed
    assert "steps 0 to 2" in printed
    began = weights(base / stage)
    assert same(began, weights(f"outputs/{stage}/tuned")) == set(began)  # the averaged weights, which are saved
    _, tensors, _ = checkpoint.load_state(f"outputs/{stage}/tuned")
    model = {name.removeprefix("model."): each for name, each in tensors.items() if name.startswith("model.")}
    assert same(began, model) == set(began)
    moments = {tensor.item() for name, tensor in tensors.items() if name.startswith("optimizer.step.")}
    assert moments == {2.0}  # the optimizer is a fresh one


def test_ema_starts_from_init_weights(train, base):
    average = ["stage.ema.decay=0.9", "stage.ema.warmup=false", "stage.optimizer.learning_rate.start=1e-2"]
    assert train(*of("dvae", "init=base/dvae", *average))[0] == 0
    began, averaged = weights(base / "dvae"), weights("outputs/dvae/default")
    _, tensors, _ = checkpoint.load_state("outputs/dvae/default")
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


# --- what does not fit ---------------------------------------------------------------------------------------


def test_other_model_settings_raise_with_both_values(train, base):
    status, printed = train(*of("transformer", "stage.model.width=32", "stage.model.patterns=[dense]", "init=base"))
    assert status == 2
    assert "init=base/transformer is another model: stage.model.width is 16 there and 32 here, " in printed
    assert "Add stage.model.width=16 stage.model.patterns=[paper], or set init_strict=false" in printed
    assert printed.count("\n") == 1
    assert not Path("outputs/transformer").exists()


def test_settings_that_do_not_change_weights_may_differ(train, base):
    status, printed = train(
        *of("transformer", "stage.model.attention=dense", "stage.model.initial_scale=1", "init=base")
    )
    assert status == 0, printed


@pytest.mark.parametrize("stage", ["clip", "transformer"])
def test_other_image_size_raises_where_weights_depend_on_it(train, base, stage):
    status, printed = train(*of(stage, "data.image_size=32", "init=base"))
    assert status == 2
    assert "data.image_size is 16 there and 32 here" in printed


def test_dvae_can_start_from_another_image_size(train, base):
    assert train(*of("dvae", "data.image_size=32", "init=base"))[0] == 0


def test_non_strict_loads_matching_tensors_and_lists_the_rest(train, base):
    more = ["stage.model.vocabulary=16", "init=base", "init_strict=false", *FROZEN, "stage.optimizer.weight_decay=0"]
    status, printed = train(*of("dvae", *more))
    assert status == 0, printed
    assert "initialised anew: encoder.output.weight, encoder.output.bias, decoder.input.weight" in printed
    began = weights(base / "dvae")
    assert began.keys() - same(began, weights("outputs/dvae/default")) == {
        "encoder.output.weight",
        "encoder.output.bias",
        "decoder.input.weight",
    }


def test_missing_unexpected_and_mismatched_tensors_are_listed(train, base):
    tensors = weights(base / "dvae")
    del tensors["encoder.input.weight"]
    tensors["encoder.input.bias"] = torch.zeros(3)
    tensors["surplus"] = torch.zeros(1)
    save_file(tensors, base / "dvae" / WEIGHTS)
    status, printed = train(*of("dvae", "init=base"))
    assert status == 2
    assert (
        "encoder.input.weight is missing, encoder.input.bias is (3,) there and (8,) here, surplus is unknown" in printed
    )
    status, printed = train(*of("dvae", "init=base", "init_strict=false"))
    assert (status, "initialised anew: encoder.input.weight, encoder.input.bias\n" in printed) == (0, True)


def test_non_strict_raises_if_nothing_matches(train, base):
    save_file({"surplus": torch.zeros(1)}, base / "dvae" / WEIGHTS)
    status, printed = train(*of("dvae", "init=base", "init_strict=false"))
    assert (status, "no tensor that fits" in printed) == (2, True)


def test_checkpoint_of_another_stage_raises(train, base):
    status, printed = train(*of("transformer", "init=base/dvae", "dvae=base/dvae"))
    assert (status, "base/dvae holds a dvae, not a transformer" in printed) == (2, True)


def test_missing_init_raises_and_moves_nothing(train, base):
    train(*of("dvae"))
    status, printed = train(*of("dvae", "init=nowhere", "resume=false"))
    assert (status, "no checkpoint at nowhere" in printed) == (2, True)
    assert [path.name for path in Path("outputs/dvae").iterdir()] == ["default"]


def test_run_cannot_start_from_its_own_folder(train, base):
    train(*of("dvae"))
    for more in ([], ["resume=false"]):
        status, printed = train(*of("dvae", "init=outputs/dvae/default", *more))
        assert (status, "is the folder of this run itself: choose another name" in printed) == (2, True)


@pytest.mark.parametrize("stage", ["clip", "transformer"])
def test_other_tokenizer_raises_unless_embeddings_are_reinitialised(train, base, tmp_path, stage):
    CaptionTokenizer.train(["a circle of another kind", "two more words"] * 9, 290).save(tmp_path / "other.json")
    status, printed = train(*of(stage, "init=base", "stage.tokenizer=other.json"))
    assert status == 2
    assert "was trained with another tokenizer than other.json: leave stage.tokenizer out" in printed
    status, printed = train(*of(stage, "init=base", "stage.tokenizer=other.json", "init_strict=false"))
    assert status == 0, printed
    assert (
        "initialised anew: " + {"clip": "text.embedding.weight\n", "transformer": "embed.text_token.weight"}[stage]
        in printed
    )
    shutil.copy(base / stage / checkpoint.TOKENIZER, "same.json")
    assert train(*of(stage, "init=base", "stage.tokenizer=same.json", "run=same"))[0] == 0


# --- the transformer's dVAE ----------------------------------------------------------------------------------


def test_dvae_is_that_of_init_unless_given(train, base):
    assert train(*of("transformer", "init=base/transformer"))[0] == 0
    _, meta = checkpoint.read_config("outputs/transformer/default", "transformer")
    assert meta["dvae"]["digest"] == checkpoint.digest(base / "dvae")
    assert "dvae: base/" in Path("outputs/transformer/default/config.yaml").read_text()


def test_other_dvae_raises_unless_embeddings_are_reinitialised(train, base):
    train(*of("dvae", "seed=9"))
    other = ["init=base", "dvae=outputs/dvae/default"]
    status, printed = train(*of("transformer", *other))
    assert status == 2
    assert (
        f"was trained on the tokens of dVAE {checkpoint.digest(base / 'dvae')}, but outputs/dvae/default is " in printed
    )
    assert not Path("outputs/tokens").exists()
    status, printed = train(*of("transformer", *other, "init_strict=false"))
    assert status == 0, printed
    assert "initialised anew: embed.image_token.weight, image_head.weight, image_head.bias\n" in printed


def test_fine_tuned_dvae_of_init_gives_a_warning(train, base, caplog):
    train(*of("dvae", "init=base", "seed=9"))
    status, printed = train(*of("transformer", "init=base", "dvae=outputs/dvae/default"))
    assert status == 0, printed
    assert "was fine-tuned since base/transformer was trained on its codes" in caplog.text


# --- all stages ----------------------------------------------------------------------------------------------


def everything(*more: str) -> list[str]:
    return [
        *COMMON,
        "stage=all",
        "run=tuned",
        *(each for stage in MODELS for each in tiny(stage, f"stage.{stage}")),
        *more,
    ]


def test_each_stage_of_all_starts_from_its_part_of_init(train, base):
    status, printed = train(*everything("init=base"))
    assert status == 0, printed
    for stage in MODELS:
        assert f"outputs/tuned/{stage}: starts from the weights of base/{stage}" in printed
        _, meta = checkpoint.read_config(f"outputs/tuned/{stage}", stage)
        assert meta["init"] == {"path": f"../../../base/{stage}", "digest": checkpoint.digest(base / stage)}
    status, printed = train(*everything("init=base"))
    assert (status, printed.count("finished, 2 updates done")) == (0, 3)


def test_all_stages_check_init_before_training(train, base, tmp_path):
    status, printed = train(*everything("init=base", "stage.transformer.model.width=32"))
    assert (status, "stage.transformer.model.width=16" in printed) == (2, True)
    shutil.rmtree(base / "clip")
    status, printed = train(*everything("init=base"))
    assert (status, "no checkpoint at base/clip" in printed) == (2, True)
    assert not Path("outputs").exists()


# --- provenance and resuming ---------------------------------------------------------------------------------


def test_init_is_recorded_as_a_source(train, prepare, base):
    train(*of("dvae", "init=base"))
    folder = Path("outputs/dvae/default")
    _, meta = checkpoint.read_config(folder, "dvae")
    assert meta["init"] == {"path": "../../../base/dvae", "digest": checkpoint.digest(base / "dvae")}
    assert "init: base" in (folder / "config.yaml").read_text()
    _, printed = prepare(f"sources={folder}")
    assert f"started from base/dvae, digest {meta['init']['digest']}, whose training data count as well" in printed


@pytest.mark.parametrize("stage", MODELS)
def test_run_resumes_bitwise_without_reading_init_again(train, base, stage):
    tune = [
        *of(stage, "init=base", "data.train=16"),
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
    whole, parts = (checkpoint.load_state(f"outputs/{stage}/{run}") for run in ("whole", "parts"))
    assert all(tensor.equal(parts[1][name]) for name, tensor in whole[1].items())
    files = [(Path(f"outputs/{stage}") / run / checkpoint.CONFIG).read_text() for run in ("whole", "parts")]
    assert files[0] == files[1]


def test_transformer_resumes_with_the_dvae_of_init(train, base):
    train(*of("transformer", "init=base"))
    shutil.rmtree(base / "transformer")
    status, printed = train(*of("transformer", "init=base", "stage.steps=3"))
    assert (status, "steps 2 to 3" in printed) == (0, True), printed


def test_changing_init_of_an_existing_run_raises(train, base):
    train(*of("dvae", "init=base"))
    train(*of("dvae", "run=other"))
    status, printed = train(*of("dvae", "init=outputs/dvae/other"))
    digests = [checkpoint.digest(folder) for folder in (base / "dvae", "outputs/dvae/other")]
    assert (status, f"init was {digests[0]}, now {digests[1]}" in printed) == (2, True), printed
    status, printed = train(*of("dvae"))
    assert (status, f"init was {digests[0]}, now absent" in printed) == (2, True)
    status, printed = train(*of("dvae", "run=other", "init=base"))
    assert (status, f"init was absent, now {digests[0]}" in printed) == (2, True)
    assert train(*of("dvae", "init=outputs/dvae/other", "resume=false"))[0] == 0


# --- ranks and imports ---------------------------------------------------------------------------------------


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
    sizes = {name: int(value) for name, value in (each.split("=") for each in MODELS["clip"].split())}
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
        for each in convolution_mappings(half, sizes):
            state |= {f"{each.theirs}.w": torch.randn(each.shape), f"{each.theirs}.b": torch.randn(each.shape[0])}
        torch.save(state, tmp_path / f"{half}.pkl")
    assert prepare("import=openai-dvae", "out=imported")[0] == 0
    model = [f"stage.model.{name}={value}" for name, value in sizes.items()]
    still = [*FROZEN, "stage.optimizer.weight_decay=0"]
    status, printed = train(*of("dvae", "init=imported", "stage.model.gain=null", *model, *still))
    assert status == 0, printed
    began = weights("imported")
    assert same(began, weights("outputs/dvae/default")) == set(began)


# --- what it is for ------------------------------------------------------------------------------------------


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
        "dvae": [*tiny("dvae"), *(f"stage.{each}" for each in dvae.split())],
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
