"""Datasheet of a checkpoint: its settings, records, counts, omissions and authors, as Markdown and as Croissant."""

import json

import pytest

from dalle.data.audit.datasheet import MAX_ROWS, count_rows, datasheet, write_datasheet
from dalle.data.audit.provenance import Provenance

AUTHOR = {"set": "openmoji", "author": "OpenMoji", "licence": "CC-BY-SA-4.0", "url": "https://openmoji.org"}
SETTINGS = {"path": "/secret/place", "languages": ["en", "fr"], "mix": {"panels": 0.6}, "opt_out": "/secret/list.txt"}
META = {
    "data": {"name": "drawings", **SETTINGS},
    "records": {"train": {"records": 1234, "digest": "abc", "left_out": {"on the opt-out list": 5}}},
    "counts": {"style": {"3D render": 1000, "line drawing": 234}},
    "attributions": [AUTHOR],
    "init": {"path": "../other", "digest": "def"},
}


@pytest.fixture
def model(tmp_path):
    return Provenance(tmp_path, "transformer", META)


def test_the_page_has_everything_that_the_checkpoint_records(model):
    page = datasheet(model)
    for expected in (
        "Data set `drawings`",
        "| languages | en, fr |",
        "| mix.panels | 0.6 |",
        "| train | 1,234 | `abc` |\n",
        "Left out of the whole data set: 5 on the opt-out list.",
        "Opt-out list: yes.",
        "| 3D render | 1,000 |",
        "| openmoji | OpenMoji | CC-BY-SA-4.0 | https://openmoji.org |",
        "Training started from a model with digest `def`",
    ):
        assert expected in page
    assert "/secret" not in page


def test_croissant_metadata_are_valid(model, tmp_path):
    mlcroissant = pytest.importorskip("mlcroissant")
    page, metadata = write_datasheet(tmp_path, model)
    assert page.read_text().startswith("# Training data of a transformer")
    read = mlcroissant.Dataset(json.loads(metadata.read_text())).metadata
    assert not read.issues.errors
    assert read.license == ["CC-BY-SA-4.0"]
    assert "1,234 records of the split train" in read.description
    assert "/secret" not in metadata.read_text()


def test_a_model_without_a_record_says_so(tmp_path):
    page = datasheet(Provenance(tmp_path, "dvae", {"imported": "encoder.pkl"}))
    assert "Unknown: its weights were imported from encoder.pkl." in page
    assert str(tmp_path) not in page


def test_the_command_writes_the_datasheet_without_the_data(checkpoints, run_command, tmp_path):
    status, printed = run_command("prepare", f"sources={checkpoints}", "datasheet=sheet")
    assert status == 0, printed
    assert (tmp_path / "sheet" / "datasheet.md").read_text().startswith("# Training data of a transformer")
    status, printed = run_command("prepare", f"sources={checkpoints}", "datasheet=sheet")
    assert (status, "choose another datasheet=" in printed) == (2, True)
    status, printed = run_command("prepare", "data=blocks", "datasheet=other")
    assert (status, "datasheet= needs a checkpoint" in printed) == (2, True)


def test_small_counts_are_added_up():
    rows = count_rows({str(number): number for number in range(1, MAX_ROWS + 3)})
    assert len(rows) == MAX_ROWS + 1
    assert rows[0] == (str(MAX_ROWS + 2), str(MAX_ROWS + 2))
    assert rows[-1] == ("2 others", "3")
