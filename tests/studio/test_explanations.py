"""Explanations of drawn images: previews, attention to each word, nearest training images, facts about the model."""

import base64
import io

import pytest
from PIL import Image
from running_studio import running

from dalle.data.blocks import BlocksConfig
from dalle.sampling.novelty import Novelty, TrainingImages
from dalle.studio.config import StudioConfig
from dalle.studio.events import EventLog
from dalle.studio.model_info import card_limits
from dalle.studio.session import Session


def decoded(url: str) -> Image.Image:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_each_word_has_a_heat_map(studio):
    (image,) = studio.drawn(caption="one circle left of a square", candidates=1)
    words = studio.client.get(f"/api/images/{image['id']}/attention").json()["words"]
    assert [word["word"] for word in words] == ["one", "circle", "left", "of", "a", "square"]
    assert sum(word["share"] for word in words) == pytest.approx(1, abs=0.01)
    assert all(decoded(word["image"]).size == decoded(words[0]["image"]).size for word in words)


def test_an_upload_has_no_attention(studio):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    key = studio.client.post("/api/uploads", content=file.getvalue()).json()["id"]
    answer = studio.client.get(f"/api/images/{key}/attention")
    assert answer.status_code == 404 and "uploaded" in answer.json()["error"]["message"]


def test_without_an_index_the_answer_says_how_to_get_one(studio):
    (image,) = studio.drawn(candidates=1)
    answer = studio.client.get(f"/api/images/{image['id']}/nearest")
    assert answer.status_code == 404 and "novelty=true" in answer.json()["error"]["message"]
    assert studio.client.get("/api/model").json()["has_training_images"] is False


def test_the_nearest_training_images_are_shown(make_session, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the index is cached in a folder below
    session = make_session()
    session.novelty = Novelty(TrainingImages.open(BlocksConfig(image_size=8, train=20)), session.dalle.dvae)
    with running(session) as studio:
        (image,) = studio.drawn(candidates=1)
        found = studio.client.get(f"/api/images/{image['id']}/nearest").json()
    assert found["training_images"] == 20
    (nearest,) = found["nearest"]
    assert decoded(nearest["image"]).size == (8, 8)
    assert nearest["caption"] and "bits" in nearest["distance"] and nearest["near_copy"] in (True, False)


def test_previews_show_the_rows_that_are_finished(studio, monkeypatch):
    monkeypatch.setattr("dalle.studio.previews.INTERVAL_OF_ONE", 0.0)
    monkeypatch.setattr("dalle.studio.previews.MAX_TIME_SHARE", 1e9)
    shown = []
    show = EventLog.show_progress

    def record(log, name, data):
        shown.append((name, data))
        show(log, name, data)

    monkeypatch.setattr(EventLog, "show_progress", record)
    (image,) = studio.drawn(candidates=1, seed=5)
    partials = [data for name, data in shown if name == "partial"]
    rows = [partial["rows"] for partial in partials]  # parallel decoding may finish several in one pass
    assert rows == sorted(set(rows)) and rows[-1] == 4 and len(rows) > 1
    final = Image.open(io.BytesIO(studio.client.get(f"/api/images/{image['id']}").content))
    assert decoded(partials[-1]["images"][0]).tobytes() == final.tobytes()
    first = decoded(partials[0]["images"][0])
    top = 2 * rows[0]
    assert first.size == final.size
    assert first.crop((0, top, 8, 8)).getcolors() == [(8 * (8 - top), (150, 150, 150))]


def test_limits_are_the_list_below_the_heading_of_a_card(tmp_path):
    card = "# Model\n- a fact\n## What it cannot do\n- Draw **hands**,\n  or [text](x).\n- Count.\n## Other\n- no\n"
    (tmp_path / "README.md").write_text(card)
    assert card_limits(tmp_path) == ["Draw hands, or text.", "Count."]
    assert card_limits(tmp_path / "nowhere") == []


def test_the_bundled_model_has_examples_and_limits():
    session = Session.load(StudioConfig())
    try:
        described = session.describe()
    finally:
        session.close()
    assert len(described["examples"]) >= 4 and len(described["limits"]) >= 3
    assert session.dalle.unknown_words(described["examples"]) == []
