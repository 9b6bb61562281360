"""evaluate.py from the command line: metrics.json, metrics.md, selection of metrics, and error messages."""

import json

import pytest
from PIL import Image

from dalle.data import open_source
from dalle.data.folder import FolderConfig
from dalle.evaluation.metrics import METRICS, log_likelihood, reconstruction
from dalle.evaluation.metrics_file import read_or_create
from dalle.registry import Entry

DATA = ("data=blocks", "data.image_size=8", "data.val=12", "data.novel=12")
SMALL = ("captions=4", "candidates=2", "pairs=6", "device=cpu")


@pytest.fixture
def evaluate(run_command, checkpoints):
    def run(*arguments: str) -> tuple[int, str]:
        return run_command("evaluate", f"checkpoint={checkpoints}", "out=found/metrics.json", *SMALL, *arguments)

    return run


def test_default_metrics(evaluate, tmp_path):
    status, printed = evaluate(*DATA)
    assert status == 0, printed
    content = json.loads((tmp_path / "found/metrics.json").read_text())
    assert list(content["metrics"]) == ["reconstruction", "likelihood", "alignment"]
    numbers = {name: value for name, value in content.items() if name not in ("format", "context", "metrics")}
    assert all(isinstance(value, float) for value in numbers.values())
    names = {"judge_val_top", "judge_val_first", "judge_novel_top", "judge_novel_first", "dvae_hard_judge"}
    assert names | {"code_perplexity", "codes_used", "reconstruction_rmse", "clip_val_top"} <= numbers.keys()
    for name, value in numbers.items():
        assert f"{name} " in printed and f"{value:.4f}" in printed
    page = (tmp_path / "found/metrics.md").read_text()
    for heading in ("## Reconstruction", "## Likelihood", "## Image-text alignment"):
        assert heading in page
    for entry in content["metrics"].values():
        for image in entry["images"]:
            assert f"]({image})" in page
            assert min(Image.open(tmp_path / "found" / image).size) > 100


def test_several_processes_that_would_evaluate_the_same_are_refused(evaluate, tmp_path, monkeypatch):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    status, printed = evaluate(*DATA)
    assert status == 2
    assert "evaluate.py works in one process, and torchrun started 2, which would all do the same" in printed
    assert "with its own CUDA_VISIBLE_DEVICES and other metrics" in printed
    assert not list(tmp_path.iterdir())


def test_selected_metrics_are_collected_in_one_file(evaluate, tmp_path):
    assert evaluate(*DATA, "metrics=[likelihood]")[0] == 0
    assert evaluate(*DATA, "metrics=[reconstruction]")[0] == 0
    content = json.loads((tmp_path / "found/metrics.json").read_text())
    assert set(content["metrics"]) == {"likelihood", "reconstruction"}
    page = (tmp_path / "found/metrics.md").read_text()
    assert page.index("## Reconstruction") < page.index("## Likelihood")


def test_unknown_metric_lists_the_choices(evaluate):
    status, printed = evaluate(*DATA, "metrics=[fid]")
    assert status == 2
    assert (
        "there is no metric 'fid'; choose one of reconstruction, decoder, likelihood, alignment, capabilities, "
        "drawings, drawing_edits, bias, sample_quality, blur_curve, rerank_curve" in printed
    )


def test_results_survive_a_later_failure(evaluate, tmp_path):
    status, printed = evaluate(*DATA, "metrics=[likelihood,sample_quality]", "features=inception")
    assert status == 2
    assert "needs the weights of FID's network" in printed
    assert "image_nats_val" in json.loads((tmp_path / "found/metrics.json").read_text())


def test_out_must_end_in_json(run_command):
    status, printed = run_command("evaluate", "out=found/metrics")
    assert status == 2
    assert "out=found/metrics must end in .json" in printed


def test_held_out_images_without_a_caption_are_left_out_for_a_transformer(evaluate, run_command, checkpoints, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a red square {number}")
    data = FolderConfig(path=str(folder), image_size=8, validation_share=0.5, allow_missing_captions=True)
    held_out = list(open_source(data, "val").keys())
    (folder / held_out[0]).with_suffix(".txt").unlink()
    options = ["data=folder", f"data.path={folder}", "data.image_size=8", "data.validation_share=0.5"]
    options += ["data.allow_missing_captions=true", "pairs=99", "captions=99", "curve_captions=99"]
    metrics = "metrics=[reconstruction,likelihood,alignment]"
    status, printed = evaluate(*options, metrics, "rerank_curve=true", "curve_candidates=2")
    assert status == 0, printed
    found = json.loads((tmp_path / "found/metrics.json").read_text())["metrics"]
    assert found["likelihood"]["settings"]["val"]["pairs"] == len(held_out) - 1
    options += [f"checkpoint={checkpoints}/dvae", "metrics=[reconstruction]", "out=dvae/metrics.json"]
    status, printed = run_command("evaluate", *SMALL, *options)
    assert status == 0, printed
    found = json.loads((tmp_path / "dvae/metrics.json").read_text())["metrics"]
    assert found["reconstruction"]["settings"]["pairs"] == len(held_out)


def test_checkpoint_without_training_data_needs_data(evaluate):
    status, printed = evaluate()
    assert status == 2
    assert "does not record its training data" in printed


def test_file_that_cannot_be_extended_is_backed_up(evaluate, tmp_path):
    found = tmp_path / "found"
    found.mkdir()
    (found / "metrics.json").write_text('{"format": 99}')
    assert "it was copied to found/metrics.1.json" in evaluate(*DATA, "metrics=[likelihood]")[1]
    assert (found / "metrics.1.json").read_text() == '{"format": 99}'
    first = (found / "metrics.json").read_text()
    assert "copied" not in evaluate(*DATA, "metrics=[likelihood]")[1]
    printed = evaluate(*DATA, "metrics=[likelihood]", "pairs=3")[1]
    assert (
        "likelihood was computed with other settings before; the earlier file was copied to found/metrics.2.json"
        in printed
    )
    kept, now = (json.loads((found / name).read_text()) for name in ("metrics.2.json", "metrics.json"))
    assert kept["image_nats_val"] == json.loads(first)["image_nats_val"] != now["image_nats_val"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["metrics=[]"], "metrics=[] selects no metric"),
        (["captions=0"], "captions=0 must be at least 1"),
        (["capability_captions=-1"], "capability_captions=-1 must be at least 1"),
        (["metrics=likelihoods"], "there is no metric 'likelihoods'"),
        (["data=folder"], "data.path"),
        (["scorer=clip"], "scorer=clip is read by rerank_curve only: add one of them to metrics="),
        (["weights=inception.pth", "metrics=[bias]"], "weights=inception.pth is read by sample_quality, "),
        (["features=inception"], "features=inception is read by sample_quality, "),
        (["bias_prompts=[a nurse | a man]"], "is read by bias only"),
    ],
)
def test_invalid_options_are_reported(evaluate, arguments, sentence):
    status, printed = evaluate(*arguments)
    assert (status, sentence in printed) == (2, True), printed


def test_note_if_there_are_fewer_pairs_than_requested(evaluate):
    status, printed = evaluate(*DATA, "metrics=likelihood,alignment", "pairs=99", "captions=13")
    assert status == 0
    assert "val: Only 12 held-out pairs can be read; 99 were requested." in printed
    assert "val: Only 12 held-out pairs can be read; 13 were requested." in printed


def test_results_written_by_another_evaluation_meanwhile_are_kept(evaluate, tmp_path, monkeypatch):
    measure = log_likelihood.measure

    def slowly(context, config):
        content, other = read_or_create(config.file, context.identity()), reconstruction.measure(context, config)
        assert content is not None
        content.with_result("reconstruction", other, {}, config.folder).write(config.file)
        return measure(context, config)

    monkeypatch.setitem(METRICS._entries, "likelihood", Entry(slowly))
    assert evaluate(*DATA, "metrics=likelihood")[0] == 0
    content = json.loads((tmp_path / "found/metrics.json").read_text())
    assert set(content["metrics"]) == {"likelihood", "reconstruction"}
