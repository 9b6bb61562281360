"""metrics.json: flat numbers, entries of metrics, results of several runs, and files of other versions."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dalle.evaluation.metric_result import MetricResult
from dalle.evaluation.metrics_file import FORMAT, MetricsFile, back_up, read_metrics, read_metrics_file, read_or_create
from dalle.evaluation.metrics_page import write_page

CONTEXT = {"models": {"dvae": "abc"}, "data": {"name": "blocks", "sizes": [1, 2]}}


def metric_result(**numbers: float) -> MetricResult:
    return MetricResult("Description.", numbers, {"seed": 3}, {"sheet": Image.new("RGB", (2, 2))}, notes=["A note."])


def add_result(content: MetricsFile, name: str, folder: Path, **numbers: float) -> MetricsFile:
    return content.with_result(name, metric_result(**numbers), {"device": "cpu"}, folder / "metrics")


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "metrics.json"


def test_numbers_are_flat_and_read_back(path):
    content = add_result(MetricsFile(CONTEXT), "alignment", path.parent, judge_val_top=0.5, clip_val_top=0.9)
    content.write(path)
    assert json.loads(path.read_text())["judge_val_top"] == 0.5
    assert read_metrics(path) == {"judge_val_top": 0.5, "clip_val_top": 0.9}
    assert read_metrics_file(path) == content


def test_entry_has_settings_and_image_files(path):
    entry = add_result(MetricsFile(CONTEXT), "alignment", path.parent, a=1.0).metrics["alignment"]
    assert entry.settings == {"seed": 3, "environment": {"device": "cpu"}}
    assert entry.images == ["metrics/sheet.png"]
    assert Image.open(path.parent / entry.images[0]).size == (2, 2)
    assert entry.notes == ["A note."]


def test_results_of_several_runs_are_collected(path):
    add_result(read_or_create(path, CONTEXT), "alignment", path.parent, a=1.0, b=2.0).write(path)
    add_result(read_or_create(path, CONTEXT), "sample_quality", path.parent, c=3.0).write(path)
    add_result(read_or_create(path, CONTEXT), "alignment", path.parent, a=4.0).write(path)
    assert read_metrics(path) == {"c": 3.0, "a": 4.0}  # b was of the earlier result of alignment
    assert set(read_metrics_file(path).metrics) == {"alignment", "sample_quality"}


@pytest.mark.parametrize("other", [{**CONTEXT, "models": {"dvae": "xyz"}}, {**CONTEXT, "data": {"name": "emoji"}}])
def test_file_of_other_models_or_data_is_not_extended(path, other):
    add_result(read_or_create(path, CONTEXT), "alignment", path.parent, a=1.0).write(path)
    assert read_or_create(path, other) is None
    assert read_or_create(path.with_name("new.json"), other) == MetricsFile(other)


def test_back_up_keeps_numbers_page_and_images(path):
    content = add_result(MetricsFile(CONTEXT | {"data": {"name": "blocks", "image_size": 8}}), "alignment", path.parent)
    content.write(path)
    write_page(content, path.with_suffix(".md"))
    assert [back_up(path).name for _ in range(2)] == ["metrics.1.json", "metrics.2.json"]
    Image.new("RGB", (5, 5)).save(path.parent / "metrics" / "sheet.png")  # of the next evaluation
    (image,) = read_metrics_file(path.with_name("metrics.1.json")).metrics["alignment"].images
    assert image == "metrics.1/sheet.png" and f"]({image})" in path.with_name("metrics.1.md").read_text()
    assert Image.open(path.parent / image).size == (2, 2)


@pytest.mark.parametrize("table", ["", "| a table |\n|---|\n"])
def test_page_has_all_numbers_of_a_metric(path, table):
    result = replace(metric_result(judge_val_top=0.5), table=table)
    context = CONTEXT | {"data": {"name": "blocks", "image_size": 8}}
    write_page(MetricsFile(context).with_result("alignment", result, {}, path.parent / "metrics"), path)
    assert "| `judge_val_top` | 0.5 |" in path.read_text() and table in path.read_text()


def test_numbers_that_are_not_finite_are_left_out_with_a_note(path):
    content = add_result(MetricsFile(CONTEXT), "alignment", path.parent, a=float("nan"), b=1.0)
    content.write(path)
    assert read_metrics(path) == {"b": 1.0}
    assert "`a` is left out: it is not finite." in content.metrics["alignment"].notes


def test_file_of_another_format_raises_with_advice(path):
    path.write_text('{"format": 1}')
    with pytest.raises(ValueError, match=f"format 1 but this version reads format {FORMAT}: run evaluate.py again"):
        read_metrics(path)
    path.write_text('{"format": 9}')
    with pytest.raises(ValueError, match="format 9 .*: update the code"):
        read_metrics_file(path)
    assert read_or_create(path, CONTEXT) is None


@pytest.mark.parametrize(
    "content",
    [
        '{"judge_val_top": 0.5}',
        f'{{"format": {FORMAT}}}',
        f'{{"format": {FORMAT}, "context": {{}}, "metrics": {{"a": 1}}}}',
    ],
)
def test_file_not_written_by_evaluate_raises(path, content):
    path.write_text(content)
    with pytest.raises(ValueError, match="was not written by evaluate.py"):
        read_metrics_file(path)


def test_missing_file_raises(path):
    with pytest.raises(ValueError, match="metrics.json is missing"):
        read_metrics(path)
