"""evaluate.py from the command line: one page, one file of numbers, parts by name, mistakes in sentences."""

import json

import pytest
from PIL import Image

from dalle.evaluation.metrics import METRICS, likelihood, reconstruction
from dalle.evaluation.record import begin
from dalle.registry import Entry

DATA = ("data=blocks", "data.image_size=8", "data.val=12", "data.novel=12")
SMALL = ("captions=4", "candidates=2", "pictures=6", "device=cpu")


@pytest.fixture
def evaluate(run_command, checkpoints):
    def run(*arguments: str) -> tuple[int, str]:
        return run_command("evaluate", f"checkpoint={checkpoints}", "out=found/metrics.json", *SMALL, *arguments)

    return run


def test_by_default_it_measures_what_is_quick(evaluate, tmp_path):
    status, printed = evaluate(*DATA)
    assert status == 0, printed
    content = json.loads((tmp_path / "found/metrics.json").read_text())
    assert list(content["parts"]) == ["reconstruction", "likelihood", "fit"]
    numbers = {name: value for name, value in content.items() if name not in ("format", "subject", "parts")}
    assert all(isinstance(value, float) for value in numbers.values())
    names = {"judge_val_top", "judge_val_first", "judge_novel_top", "judge_novel_first", "dvae_hard_judge"}
    assert names | {"code_perplexity", "codes_used", "dvae_hard_error", "clip_val_top"} <= numbers.keys()
    for name, value in numbers.items():
        assert f"{name} " in printed and f"{value:.4f}" in printed
    page = (tmp_path / "found/metrics.md").read_text()
    for heading in ("## Reconstruction", "## Likelihood", "## Fit to captions"):
        assert heading in page
    for part in content["parts"].values():
        for picture in part["pictures"]:
            assert f"]({picture})" in page
            assert min(Image.open(tmp_path / "found" / picture).size) > 100


def test_parts_are_chosen_by_name_and_gather_in_one_file(evaluate, tmp_path):
    assert evaluate(*DATA, "metrics=[likelihood]")[0] == 0
    assert evaluate(*DATA, "metrics=[reconstruction]")[0] == 0
    content = json.loads((tmp_path / "found/metrics.json").read_text())
    assert set(content["parts"]) == {"likelihood", "reconstruction"}
    page = (tmp_path / "found/metrics.md").read_text()
    assert page.index("## Reconstruction") < page.index("## Likelihood")


def test_a_part_that_does_not_exist_is_answered_with_those_that_do(evaluate):
    status, printed = evaluate(*DATA, "metrics=[fid]")
    assert status == 2
    assert "there is no metric 'fid'; choose one of reconstruction, likelihood, fit, abilities, quality" in printed


def test_what_was_measured_outlives_a_part_that_fails(evaluate, tmp_path):
    status, printed = evaluate(*DATA, "metrics=[likelihood,quality]", "features=inception")
    assert status == 2
    assert "needs the weights of FID's network" in printed
    assert "image_nats_val" in json.loads((tmp_path / "found/metrics.json").read_text())


def test_a_name_that_leaves_no_room_for_the_page_is_refused(run_command):
    status, printed = run_command("evaluate", "out=found/metrics")
    assert status == 2
    assert "out=found/metrics is to be a .json file" in printed


def test_a_checkpoint_that_does_not_say_its_data_asks_for_some(evaluate):
    status, printed = evaluate()
    assert status == 2
    assert "does not say which data it was trained on: name some" in printed


def test_a_record_that_cannot_be_gone_on_with_is_kept(evaluate, tmp_path):
    found = tmp_path / "found"
    found.mkdir()
    (found / "metrics.json").write_text('{"format": 99}')
    assert "it is kept as found/metrics.1.json" in evaluate(*DATA, "metrics=[likelihood]")[1]
    assert (found / "metrics.1.json").read_text() == '{"format": 99}'
    first = (found / "metrics.json").read_text()
    assert "kept" not in evaluate(*DATA, "metrics=[likelihood]")[1]
    printed = evaluate(*DATA, "metrics=[likelihood]", "pictures=3")[1]
    assert "likelihood was measured with other settings before; that record is kept as found/metrics.2.json" in printed
    kept, now = (json.loads((found / name).read_text()) for name in ("metrics.2.json", "metrics.json"))
    assert kept["image_nats_val"] == json.loads(first)["image_nats_val"] != now["image_nats_val"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["metrics=[]"], "metrics=[] leaves nothing to measure"),
        (["captions=0"], "captions=0 must be at least 1"),
        (["ability_captions=-1"], "ability_captions=-1 must be at least 1"),
        (["metrics=likelihoods"], "there is no metric 'likelihoods'"),
        (["data=folder"], "data.path"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_sentence(evaluate, arguments, sentence):
    status, printed = evaluate(*arguments)
    assert (status, sentence in printed) == (2, True), printed


def test_fewer_pairs_than_asked_for_are_said(evaluate):
    status, printed = evaluate(*DATA, "metrics=likelihood,fit", "pictures=99", "captions=13")
    assert status == 0
    assert "val: There are 12 held-out pairs that can be read, not 99." in printed
    assert "val: There are 12 held-out pairs that can be read, not 13." in printed


def test_what_another_evaluation_wrote_meanwhile_stays(evaluate, tmp_path, monkeypatch):
    measure = likelihood.measure

    def slowly(subject, config):
        record, other = begin(config.file, subject.described()), reconstruction.measure(subject, config)
        assert record is not None
        record.having("reconstruction", other, {}, config.folder).write(config.file)
        return measure(subject, config)

    monkeypatch.setitem(METRICS._entries, "likelihood", Entry(slowly))
    assert evaluate(*DATA, "metrics=likelihood")[0] == 0
    content = json.loads((tmp_path / "found/metrics.json").read_text())
    assert set(content["parts"]) == {"likelihood", "reconstruction"}
