"""Datasheet of a checkpoint: its settings, records, counts, omissions and authors, as Markdown and as Croissant."""

import json

import pytest

from dalle.data.audit.datasheet import datasheet, write_datasheet
from dalle.data.audit.provenance import Provenance
from dalle.data.audit.stage_data import MAX_ROWS, count_rows

AUTHOR = {"set": "openmoji", "author": "OpenMoji", "licence": "CC-BY-SA-4.0", "url": "https://openmoji.org"}
PACKAGE = {
    "name": "openmoji@17.0.0",
    "url": "pkg:npm/openmoji@17.0.0",
    "sha256": "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
}
SETTINGS = {"path": "/secret/place", "languages": ["en", "fr"], "mix": {"panels": 0.6}, "opt_out": "/secret/list.txt"}
META = {
    "data": {"name": "drawings", **SETTINGS},
    "records": {"train": {"records": 1234, "digest": "abc", "left_out": {"on the opt-out list": 5}}},
    "left_out_complete": True,
    "counts": {"style": {"3D render": 1000, "line drawing": 234}, "language": {"en": 1234, "fr": 200}},
    "attributions": [AUTHOR],
    "packages": [PACKAGE],
    "init": {"path": "../other", "digest": "def"},
}


@pytest.fixture
def model(tmp_path):
    return Provenance(tmp_path, "transformer", META)


def test_the_page_has_everything_that_the_checkpoint_records(model):
    page = datasheet({model.kind: model})
    for expected in (
        "Data set `drawings`",
        "| languages | en, fr |",
        "| mix.panels | 0.6 |",
        "| train | 1,234 | `abc` |\n",
        "Left out of the whole data set: 5 on the opt-out list.",
        "Opt-out list: yes.",
        "| 3D render | 1,000 |",
        "| openmoji | OpenMoji | CC-BY-SA-4.0 | https://openmoji.org |",
        f"| openmoji@17.0.0 | `{PACKAGE['sha256']}` | {PACKAGE['url']} |",
        "Training started from a model with digest `def`",
    ):
        assert expected in page
    assert "/secret" not in page


def test_croissant_metadata_are_valid(model, tmp_path):
    mlcroissant = pytest.importorskip("mlcroissant")
    page, metadata = write_datasheet(tmp_path, {model.kind: model})
    assert page.read_text().startswith("# Training data of a transformer")
    read = mlcroissant.Dataset(json.loads(metadata.read_text())).metadata
    assert not read.issues.errors
    assert read.license == ["CC-BY-SA-4.0"]
    assert "1,234 records of the split train" in read.description
    assert "/secret" not in metadata.read_text()
    assert "Training records by style: 3D render 1,000, line drawing 234." in read.description
    missing = "Left out of the whole data set: 5 on the opt-out list. Opt-out list: yes."
    assert read.data_collection_missing_data == missing and missing in read.description
    assert "mix.panels: 0.6" in read.data_preprocessing_protocol
    assert read.in_language == ["en", "fr"]
    (file,) = read.distribution
    assert {"name": file.name, "url": file.content_url, "sha256": file.sha256} == PACKAGE
    assert "http://mlcommons.org/croissant/1.0" in json.loads(metadata.read_text())["conformsTo"]


def test_croissant_counts_can_be_read_as_records(model, tmp_path):
    mlcroissant = pytest.importorskip("mlcroissant")
    dataset = mlcroissant.Dataset(json.loads(write_datasheet(tmp_path, {model.kind: model})[1].read_text()))
    rows = list(dataset.records("counts-by-style"))
    assert [row["counts-by-style/records"] for row in rows] == [1000, 234]
    assert [row["counts-by-style/style"] for row in rows] == ["3D render", "line drawing"]


def test_omissions_that_a_checkpoint_does_not_record_are_not_called_none(tmp_path):
    """The bundled models counted opted-out drawings only."""

    def said(left_out, **more):
        records = {"train": {"records": 3, "digest": "abc", **left_out}}
        model = Provenance(tmp_path, "dvae", {"data": {"name": "drawings"}, "records": records, **more})
        (sentence,) = [line for line in datasheet({model.kind: model}).splitlines() if line.startswith("Left out")]
        return sentence.removeprefix("Left out of the whole data set: ")

    assert said({}) == said({"left_out": {}}) == "not recorded."
    some = {"left_out": {"opted out by key": 2}}
    assert said(some) == "2 opted out by key; other reasons are not recorded."
    assert said(some, left_out_complete=True) == "2 opted out by key."
    assert said({"left_out": {}}, left_out_complete=True) == "nothing."


def test_a_model_without_a_record_says_so(tmp_path):
    page = datasheet({"dvae": Provenance(tmp_path, "dvae", {"imported": "encoder.pkl"})})
    assert "Unknown: its weights were imported from encoder.pkl." in page
    assert str(tmp_path) not in page


def test_the_command_writes_the_datasheet_without_the_data(checkpoints, run_command, tmp_path):
    status, printed = run_command("prepare", f"sources={checkpoints}", "datasheet=sheet")
    assert status == 0, printed
    page = (tmp_path / "sheet" / "datasheet.md").read_text()
    assert page.startswith("# Training data of dvae, transformer and clip")
    assert page.count("not recorded: the checkpoint has no record of it") == 3
    status, printed = run_command("prepare", f"sources={checkpoints}", "datasheet=sheet")
    assert (status, "choose another datasheet=" in printed) == (2, True)
    status, printed = run_command("prepare", "data=blocks", "datasheet=other")
    assert (status, "datasheet= needs a checkpoint" in printed) == (2, True)


def test_small_counts_are_added_up():
    rows = count_rows({str(number): number for number in range(1, MAX_ROWS + 3)})
    assert len(rows) == MAX_ROWS + 1
    assert rows[0] == (str(MAX_ROWS + 2), str(MAX_ROWS + 2))
    assert rows[-1] == ("2 others", "3")
