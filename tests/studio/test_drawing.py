"""Drawings through the HTTP API: the pictures of `DALLE.generate`, events, previews, cancelling, edits."""

import io

import pytest
from PIL import Image
from running_studio import running

from dalle.cli.verify import compare_checkpoint
from dalle.sampling.image_record import read_record

SETTINGS = {"caption": "a red circle", "candidates": 14, "seed": 3, "temperature": 0.9, "top_k": 7}


def pixels(studio, image: str) -> bytes:
    answer = studio.client.get(f"/api/images/{image}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    return Image.open(io.BytesIO(answer.content)).tobytes()


def test_images_are_those_of_generate_in_the_same_order(studio):
    expected = studio.session.dalle.generate(**SETTINGS, keep=5)
    ranked = studio.drawn(**SETTINGS, keep=5)
    assert [image["candidate"] for image in ranked] == expected.candidates
    assert [image["score"] for image in ranked] == pytest.approx(expected.scores, abs=1e-5)
    assert [pixels(studio, image["id"]) for image in ranked] == [image.tobytes() for image in expected.images]


def test_events_tell_a_drawing_from_start_to_end(studio):
    events = studio.events(studio.draw(candidates=7, rerank="none"))
    names = [name for name, _ in events if name not in ("queued", "partial")]
    assert names == ["started", *["image"] * 7, "ranked", "done"]
    assert [data["candidate"] for name, data in events if name == "image"] == list(range(7))
    assert [image["score"] for image in dict(events)["ranked"]["images"]] == [None] * 7
    assert dict(events)["done"]["images_per_second"] > 0


def test_unknown_words_come_with_the_nearest_known_ones(studio, monkeypatch):
    monkeypatch.setattr(studio.session.dalle, "words", frozenset({"a", "circle", "red"}))
    (started,) = [data for name, data in studio.events(studio.draw(caption="a cirkle, zzyzx")) if name == "started"]
    assert (started["unknown_words"], started["nearest_words"]) == (["cirkle", "zzyzx"], [["circle"], []])
    (started,) = [data for name, data in studio.events(studio.draw(caption="a red circle")) if name == "started"]
    assert (started["unknown_words"], started["nearest_words"]) == ([], [])


def test_a_late_reader_gets_the_same_lasting_events(studio):
    job = studio.draw(candidates=3)
    first = studio.events(job)
    assert [event for event in first if event[0] not in ("queued", "partial")] == studio.events(job)


def test_each_image_records_its_settings(studio):
    (best, *_) = studio.drawn(**SETTINGS)
    file = studio.client.get(f"/api/images/{best['id']}").content
    record = read_record(io.BytesIO(file))
    assert (record["caption"], record["seed"], record["rank"]) == ("a red circle", 3, 1)
    assert record["candidate"] == best["candidate"]
    assert record["settings"]["precision"] == "float32"  # what `auto` is on a CPU
    assert record["settings"]["top_k"] == 7 and set(record["settings"]["digests"]) == {"dvae", "transformer", "clip"}
    settings = studio.client.post("/api/uploads", content=file).json()["settings"]
    assert settings.pop("candidate") == best["candidate"]
    assert [pixels(studio, image["id"]) for image in studio.drawn(**settings)][0] == pixels(studio, best["id"])


def test_pictures_that_are_not_kept_take_no_memory(make_session, decoder_folder):
    with running(make_session(decoder=str(decoder_folder))) as studio:
        store, kept = studio.session.store.drawn, []
        for decoder in (False, True):
            job = studio.draw(candidates=8, keep=2, decoder=decoder)
            events = studio.events(job)
            kept += [image["id"] for image in dict(events)["ranked"]["images"]]
            drawn = [data["id"] for name, data in events if name == "image"]
            assert len(drawn) == 8 and sum(store.get(key) is not None for key in drawn) == (0 if decoder else 2)
        assert sorted(store._items) == sorted(kept)
        assert store._bytes == 4 * 3 * 8 * 8


def test_the_diffusion_decoder_decodes_the_drawings_that_ask_for_it(make_session, decoder_folder):
    settings = {"caption": "a red circle", "candidates": 5, "keep": 2, "seed": 3}
    with running(make_session(decoder=str(decoder_folder))) as studio:
        assert studio.client.get("/api/model").json()["has_decoder"] is True
        expected = studio.session.dalle.generate(**settings)
        decoded, plain = studio.drawn(**settings, decoder=True), studio.drawn(**settings)
        assert (
            [image["candidate"] for image in decoded] == [image["candidate"] for image in plain] == expected.candidates
        )
        assert [pixels(studio, image["id"]) for image in decoded] == [image.tobytes() for image in expected.images]
        assert all(pixels(studio, a["id"]) != pixels(studio, b["id"]) for a, b in zip(decoded, plain, strict=True))
        for images, chosen in ((decoded, True), (plain, False)):
            file = studio.client.get(f"/api/images/{images[0]['id']}").content
            assert studio.client.post("/api/uploads", content=file).json()["settings"]["decoder"] is chosen
            said = compare_checkpoint(read_record(io.BytesIO(file))["settings"])
            assert said == "which is on this machine, unchanged"
        edit = {"kind": "extend", "image": decoded[0]["id"], "direction": "right", "amount": 0.5}
        (wide,) = studio.drawn(candidates=1, decoder=True, edit=edit)
        extended = Image.open(io.BytesIO(studio.client.get(f"/api/images/{wide['id']}").content))
        assert extended.size == (12, 8)
        assert extended.crop((0, 0, 8, 8)).tobytes() == pixels(studio, decoded[0]["id"])
