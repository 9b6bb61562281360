"""metrics.json: flat numbers, all that moves them, parts that gather, and other versions that are answered in words."""

import json
from pathlib import Path

import pytest
from PIL import Image

from dalle.evaluation.measured import Measured
from dalle.evaluation.record import FORMAT, Record, begin, read_metrics, read_record

SUBJECT = {"models": {"dvae": "abc"}, "data": {"name": "blocks", "sizes": [1, 2]}}


def measured(**numbers: float) -> Measured:
    return Measured("About.", numbers, {"seed": 3}, {"sheet": Image.new("RGB", (2, 2))}, notes=["A note."])


def having(record: Record, name: str, folder: Path, **numbers: float) -> Record:
    return record.having(name, measured(**numbers), {"device": "cpu"}, folder / "metrics")


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "metrics.json"


def test_numbers_are_flat_and_come_back(path):
    record = having(Record(SUBJECT), "fit", path.parent, judge_val_top=0.5, clip_val_top=0.9)
    record.write(path)
    assert json.loads(path.read_text())["judge_val_top"] == 0.5
    assert read_metrics(path) == {"judge_val_top": 0.5, "clip_val_top": 0.9}
    assert read_record(path) == record


def test_each_part_says_what_moved_its_numbers_and_where_its_pictures_lie(path):
    part = having(Record(SUBJECT), "fit", path.parent, a=1.0).parts["fit"]
    assert part.settings == {"seed": 3, "environment": {"device": "cpu"}}
    assert part.pictures == ["metrics/sheet.png"]
    assert Image.open(path.parent / part.pictures[0]).size == (2, 2)
    assert part.notes == ["A note."]


def test_parts_measured_one_after_the_other_gather(path):
    having(begin(path, SUBJECT), "fit", path.parent, a=1.0, b=2.0).write(path)
    having(begin(path, SUBJECT), "quality", path.parent, c=3.0).write(path)
    having(begin(path, SUBJECT), "fit", path.parent, a=4.0).write(path)
    assert read_metrics(path) == {"c": 3.0, "a": 4.0}  # b was of the part that was measured again
    assert set(read_record(path).parts) == {"fit", "quality"}


@pytest.mark.parametrize("other", [{**SUBJECT, "models": {"dvae": "xyz"}}, {**SUBJECT, "data": {"name": "emoji"}}])
def test_figures_of_other_models_or_data_are_not_mixed(path, other):
    having(begin(path, SUBJECT), "fit", path.parent, a=1.0).write(path)
    assert begin(path, other) is None
    assert begin(path.with_name("new.json"), other) == Record(other)


def test_what_is_not_finite_is_left_out_and_said(path):
    record = having(Record(SUBJECT), "fit", path.parent, a=float("nan"), b=1.0)
    record.write(path)
    assert read_metrics(path) == {"b": 1.0}
    assert "`a` is left out: it is not finite." in record.parts["fit"].notes


def test_a_file_of_another_version_is_answered_with_what_to_do(path):
    path.write_text('{"judge_val_top": 0.5}')
    with pytest.raises(ValueError, match=f"format 1 but this version reads format {FORMAT}: run evaluate.py again"):
        read_metrics(path)
    path.write_text('{"format": 9}')
    with pytest.raises(ValueError, match="format 9 .*: update the code"):
        read_record(path)
    assert begin(path, SUBJECT) is None


@pytest.mark.parametrize(
    "content", [f'{{"format": {FORMAT}}}', f'{{"format": {FORMAT}, "subject": {{}}, "parts": {{"a": 1}}}}']
)
def test_a_file_that_somebody_else_wrote_is_refused(path, content):
    path.write_text(content)
    with pytest.raises(ValueError, match="is not what evaluate.py writes"):
        read_record(path)


def test_a_missing_file_is_named(path):
    with pytest.raises(ValueError, match="metrics.json is missing"):
        read_metrics(path)
