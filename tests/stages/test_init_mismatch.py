"""init=: checkpoints that do not fit the run are refused, or only what fits is loaded with init_strict=false."""

import shutil
from pathlib import Path

import pytest
import torch
from init_runs import FROZEN, everything, of, same, weights
from safetensors.torch import save_file

from dalle import checkpoint
from dalle.tokenizer import CaptionTokenizer
from dalle.weights_files import WEIGHTS


def test_other_model_settings_raise_with_both_values(train, base):
    status, printed = train(*of("transformer", "stage.model.width=32", "stage.model.patterns=[dense]", "init=base"))
    assert status == 2
    assert "init=base/transformer is another model: stage.model.width is 16 there and 32 here, " in printed
    assert "Add stage.model.width=16 stage.model.patterns=[paper], or set init_strict=false" in printed
    assert printed.count("\n") == 1
    assert not Path("outputs/transformer").exists()


def test_settings_that_do_not_change_weights_may_differ(train, base):
    changes = ("attention=dense", "initial_scale=1", "dropout=0.1")
    status, printed = train(*of("transformer", *(f"stage.model.{change}" for change in changes), "init=base"))
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


def test_starting_over_without_a_dvae_raises_and_renames_nothing(train, base):
    train(*of("transformer", "dvae=base/dvae"))
    status, printed = train(*of("transformer", "resume=false"))
    assert (status, "the transformer is trained on the tokens of a dVAE: set dvae=" in printed) == (2, True)
    assert [path.name for path in Path("outputs/transformer").iterdir()] == ["default"]


def test_starting_over_from_a_checkpoint_in_the_run_folder_renames_nothing(train, base):
    train(*of("dvae", "stage.keep_best=true"))
    status, printed = train(*of("dvae", "init=outputs/dvae/default/best", "resume=false"))
    assert status == 2
    assert "init=outputs/dvae/default/best is in the folder of this run, which resume=false renames" in printed
    train(*of("transformer", "dvae=base/dvae"))
    shutil.copytree(base / "dvae", "outputs/transformer/default/dvae")
    status, printed = train(*of("transformer", "dvae=outputs/transformer/default/dvae", "resume=false"))
    assert (status, "dvae=outputs/transformer/default/dvae is in the folder of this run" in printed) == (2, True)
    assert [path.name for path in Path("outputs").glob("*/default*")] == ["default"] * 2


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


def test_all_stages_check_init_before_training(train, base, tmp_path):
    status, printed = train(*everything("tuned", "init=base", "stage.transformer.model.width=32"))
    assert (status, "stage.transformer.model.width=16" in printed) == (2, True)
    shutil.rmtree(base / "clip")
    status, printed = train(*everything("tuned", "init=base"))
    assert (status, "no checkpoint at base/clip" in printed) == (2, True)
    assert not Path("outputs").exists()


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
