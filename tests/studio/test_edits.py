"""Edits through the HTTP API: inpaint, extend, vary and complete, their refusals, and what uploads bring along."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw
from running_studio import running

from dalle.sampling.canvas import EncodedImage
from dalle.sampling.edits.variations import VariationsConfig, variations
from dalle.sampling.image_record import encode_png


@pytest.fixture(scope="module")
def picture(studio) -> str:
    return studio.drawn(candidates=1, rerank="none")[0]["id"]


def image_of(studio, key: str) -> Image.Image:
    return Image.open(io.BytesIO(studio.client.get(f"/api/images/{key}").content))


def upload(studio, image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return studio.client.post("/api/uploads", content=file.getvalue()).json()["id"]


def mask(size=(8, 8), box=None) -> Image.Image:
    image = Image.new("L", size)
    if box:
        ImageDraw.Draw(image).rectangle(box, fill=255)
    return image


def test_inpainting_changes_the_white_part_alone(studio, picture):
    edit = {"kind": "inpaint", "image": picture, "mask": upload(studio, mask(box=(4, 4, 7, 7)))}
    original = np.asarray(image_of(studio, picture))
    changed = []
    for image in studio.drawn(candidates=4, rerank="none", edit=edit, seed=9):
        edited = np.asarray(image_of(studio, image["id"]))
        assert (edited[:4] == original[:4]).all() and (edited[:, :4] == original[:, :4]).all()
        changed.append((edited != original).any())
    assert any(changed)


def test_strokes_on_a_transparent_mask_are_all_that_is_drawn_again(studio, picture):
    strokes = Image.new("RGBA", (8, 8))
    ImageDraw.Draw(strokes).rectangle((4, 4, 7, 7), fill="white")
    edit = {"kind": "inpaint", "image": picture, "mask": upload(studio, strokes)}
    (only,) = studio.drawn(candidates=1, rerank="none", edit=edit)
    original, edited = (np.asarray(image_of(studio, key)) for key in (picture, only["id"]))
    assert (edited[:4] == original[:4]).all() and (edited[:, :4] == original[:, :4]).all()


def test_an_upload_is_shown_on_white_as_the_model_sees_it(studio):
    assert np.asarray(image_of(studio, upload(studio, Image.new("RGBA", (8, 8))))).tolist() == [[[255] * 3] * 8] * 8


@pytest.mark.parametrize(
    ("direction", "size", "kept"),
    [
        ("right", (12, 8), (0, 0)),
        ("left", (12, 8), (4, 0)),
        ("down", (8, 12), (0, 0)),
        ("up", (8, 12), (0, 4)),
    ],
)
def test_extending_keeps_the_picture_where_it_belongs(studio, picture, direction, size, kept):
    edit = {"kind": "extend", "image": picture, "direction": direction, "amount": 0.5}
    (only,) = studio.drawn(candidates=1, edit=edit)
    extended = image_of(studio, only["id"])
    assert extended.size == size
    assert extended.crop((*kept, kept[0] + 8, kept[1] + 8)).tobytes() == image_of(studio, picture).tobytes()


def test_an_extended_picture_can_be_edited_again(studio, picture):
    edit = {"kind": "extend", "image": picture, "direction": "right"}
    (wide,) = studio.drawn(candidates=1, edit=edit)
    assert studio.drawn(candidates=1, edit={"kind": "vary", "image": wide["id"]})
    answer = studio.client.get(f"/api/images/{wide['id']}/attention")
    assert answer.status_code == 400 and "was extended" in answer.json()["error"]["message"]


def test_variations_of_a_seed_are_those_of_the_command(studio, picture):
    """They do not depend on the batches in which the studio draws them."""
    dalle, drawn = studio.session.dalle, studio.session.store.find_drawn(picture)
    original = EncodedImage(drawn.image.size, drawn.image, drawn.tokens)
    options = VariationsConfig(share=0.5, refinement_passes=1, proposals=4)
    expected = dalle.generate("a red circle", canvas=variations(original, options, 7, 2), candidates=7, keep=7, seed=2)
    edit = {"kind": "vary", "image": picture, "strength": 0.5}
    ranked = studio.drawn(candidates=7, seed=2, edit=edit)
    assert [image["candidate"] for image in ranked] == expected.candidates
    assert [image_of(studio, image["id"]).tobytes() for image in ranked] == [
        image.tobytes() for image in expected.images
    ]


def test_edits_keep_the_tokens_that_a_picture_was_drawn_with(studio):
    store, dalle = studio.session.store, studio.session.dalle
    drawn = [image["id"] for image in studio.drawn(candidates=8, rerank="none")]
    tokens = {key: store.find_drawn(key).tokens for key in drawn}
    changed = {
        key for key in drawn if not dalle.encode_image(image_of(studio, key)).tokens.equal(tokens[key])
    }  # by decoding and encoding
    assert changed
    for key in changed:
        (completed,) = studio.drawn(candidates=1, edit={"kind": "complete", "image": key, "rows": 3})
        assert store.find_drawn(completed["id"]).tokens[:3].equal(tokens[key][:3])
        edit = {"kind": "extend", "image": key, "direction": "right", "amount": 0.5}
        (wide,) = studio.drawn(candidates=1, edit=edit)
        assert store.find_drawn(wide["id"]).tokens[:, :4].equal(tokens[key])


def test_completing_keeps_the_rows_above(studio, picture):
    (only,) = studio.drawn(candidates=1, edit={"kind": "complete", "image": picture, "rows": 2})
    original, completed = (image_of(studio, key).crop((0, 0, 8, 4)).tobytes() for key in (picture, only["id"]))
    assert original == completed


@pytest.mark.parametrize(
    ("edit", "status", "sentence"),
    [
        ({"kind": "inpaint", "image": "{picture}", "mask": "{black}"}, 400, "no white pixel"),
        ({"kind": "inpaint", "image": "{picture}", "mask": "{wide}"}, 400, "must have the same size"),
        ({"kind": "inpaint", "image": "{picture}", "mask": "nothing"}, 404, "no such image"),
        ({"kind": "inpaint", "image": "{picture}"}, 422, "mask"),
        ({"kind": "complete", "image": "{picture}", "rows": 4}, 400, "use 1 to 3"),
        ({"kind": "vary", "image": "{picture}", "strength": 1.0}, 422, "strength"),
        (
            {"kind": "vary", "image": "{picture}", "strength": 0.001},
            400,
            "strength=0.001 draws none of the tokens anew",
        ),
        ({"kind": "extend", "image": "{picture}", "direction": "up", "amount": 2.0}, 422, "amount"),
        ({"kind": "extend", "image": "{picture}", "direction": "sideways"}, 422, "direction"),
        ({"kind": "blur", "image": "{picture}"}, 422, "kind"),
        ({"kind": "vary", "image": "{picture}", "strenght": 0.5}, 422, "did you mean strength?"),
    ],
)
def test_an_edit_that_cannot_work_is_refused_in_a_sentence(studio, picture, edit, status, sentence):
    black, wide = upload(studio, mask()), upload(studio, mask((16, 8), (0, 0, 9, 9)))
    keys = {"{picture}": picture, "{black}": black, "{wide}": wide}
    edit = {name: keys.get(value, value) for name, value in edit.items()}
    answer = studio.client.post("/api/jobs", json={"caption": "a red circle", "edit": edit})
    assert answer.status_code == status, answer.text
    assert sentence in answer.json()["error"]["message"]
    assert "\n" not in answer.json()["error"]["message"]


def test_extending_is_not_ranked_by_the_transformer(studio, picture):
    edit = {"kind": "extend", "image": picture, "direction": "up"}
    settings = {"caption": "a red circle", "rerank": "image_likelihood", "edit": edit}
    answer = studio.client.post("/api/jobs", json=settings)
    assert answer.status_code == 400 and "rerank=image_likelihood" in answer.json()["error"]["message"]


def test_a_large_upload_and_its_mask_are_scaled_down_alike(studio):
    photo = studio.client.post("/api/uploads", content=jpeg((3000, 1999))).json()
    assert (photo["width"], photo["height"]) == (1024, 682)
    white = upload(studio, mask((3000, 1999), (1200, 900, 1700, 1100)))
    assert studio.drawn(candidates=1, edit={"kind": "inpaint", "image": photo["id"], "mask": white})


def jpeg(size) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "green").save(file, "JPEG")
    return file.getvalue()


def test_a_png_of_the_studio_brings_its_settings_back(studio):
    settings = {"candidates": 3, "seed": 7, "temperature": 0.8, "top_k": 5, "guidance": None, "keep": 2}
    best = studio.drawn(**settings)[0]
    file = studio.client.get(f"/api/images/{best['id']}?download=1").content
    found = studio.client.post("/api/uploads", content=file).json()["settings"]
    expected = settings | {"caption": "a red circle", "guidance": 1.0, "rerank": "clip", "decoder": False}
    assert {name: found[name] for name in expected} == expected
    assert found["candidate"] == best["candidate"]


def test_a_png_of_sample_py_brings_its_settings_back(studio, checkpoints, run_command, tmp_path):
    settings = ["caption=two green squares", "candidates=2", "keep=1", "top_p=0.9", "out=drawn"]
    run_command("sample", f"checkpoint={checkpoints}", *settings)
    (path,) = (tmp_path / "drawn").glob("two-green-squares-*.png")
    found = studio.client.post("/api/uploads", content=path.read_bytes()).json()["settings"]
    assert (found["caption"], found["candidates"], found["top_p"]) == ("two green squares", 2, 0.9)


def test_settings_that_the_studio_has_not_are_named(studio, picture):
    def answer_to(record) -> dict:
        file = encode_png(Image.new("RGB", (8, 8)), record)
        return studio.client.post("/api/uploads", content=file).json()

    settings = {
        "rerank": "mixture",
        "rerank_weights": {"clip": 2.0},
        "rerank_references": [],
        "top_k": 5,
        "digests": {},
    }
    record = {"caption": "a red circle", "seed": 8, "candidate": 1, "rank": 1, "settings": settings}
    answer = answer_to(record)
    assert (answer["settings"]["top_k"], answer["left_out"]) == (5, ["rerank_weights"])
    answer = answer_to({**record, "settings": {**settings, "top_k": -1}})  # forged, or of a later version
    assert answer["settings"].keys() == {"caption", "seed", "candidate", "decoder"}
    assert answer["left_out"] == ["top_k", "rerank", "rerank_weights"]
    (varied,) = studio.drawn(candidates=1, edit={"kind": "vary", "image": picture})
    file = studio.client.get(f"/api/images/{varied['id']}").content
    assert studio.client.post("/api/uploads", content=file).json()["left_out"] == ["edit"]


def test_score_that_ranked_is_in_the_png_and_brings_the_order_back(make_session, checkpoint_ranked_by):
    """The checkpoint's, unless another is asked for or the checkpoint's cannot rank."""
    folder = checkpoint_ranked_by("mixture")
    with running(make_session(checkpoint=str(folder))) as studio:
        assert studio.client.get("/api/model").json()["rerank"] == "mixture"

        def settings_of(ranked):
            file = studio.client.get(f"/api/images/{ranked[0]['id']}?download=1").content
            return studio.client.post("/api/uploads", content=file).json()["settings"]

        default, clip = studio.drawn(candidates=8), studio.drawn(candidates=8, rerank="clip")
        assert settings_of(default)["rerank"] == "mixture" and settings_of(clip)["rerank"] == "clip"
        assert settings_of(studio.drawn(candidates=2, rerank="none"))["rerank"] == "none"
        settings = settings_of(default)
        del settings["candidate"]
        again = studio.drawn(**settings)
        assert [(image["candidate"], image["score"]) for image in again] == [
            (image["candidate"], image["score"]) for image in default
        ]
        edit = {"kind": "extend", "image": default[0]["id"], "direction": "up"}
        wide = studio.drawn(candidates=2, edit=edit)
        assert settings_of(wide)["rerank"] == "clip"
        body = {"caption": "a red circle", "rerank": "mixture", "edit": edit}
        answer = studio.client.post("/api/jobs", json=body)
        assert answer.status_code == 400 and "rerank=mixture" in answer.json()["error"]["message"]
    shutil.rmtree(folder / "clip")
    with running(make_session(checkpoint=str(folder))) as studio:
        assert studio.client.get("/api/model").json()["rerank"] == "none"
        unranked = studio.drawn(candidates=2)
        assert [image["score"] for image in unranked] == [None, None]
        assert settings_of(unranked)["rerank"] == "none"
