"""Requests that the studio refuses, each in a sentence."""

import pytest
from running_studio import running


@pytest.mark.parametrize(
    ("settings", "status", "sentence"),
    [
        ({"caption": ""}, 400, "caption"),
        ({"caption": "word " * 400}, 400, "word"),
        ({"caption": None}, 422, "caption: input should be a valid string"),
        ({"candidates": 0}, 400, "candidates=0"),
        ({"candidates": 65}, 400, "use at most 64"),
        ({"candidates": "8"}, 422, "candidates: input should be a valid integer"),
        ({"temperature": -1.0}, 400, "temperature=-1.0 is out of range; use 0"),
        ({"temperature": 1e300}, 400, "0.001 to 100"),
        ({"top_k": 0}, 400, "top_k=0"),
        ({"top_k": 14}, 400, "top_k=14 is more than the model's 13 image tokens; use at most 13"),
        ({"min_p": 1.5}, 400, "min_p=1.5"),
        ({"keep": 9}, 400, "keep=9 of candidates=8"),
        ({"top_p": 2}, 400, "top_p=2"),
        ({"guidance": 3.0}, 400, "guidance=3.0 needs a transformer"),
        ({"guidance": 1e300}, 400, "guidance=1e+300 is out of range"),
        ({"seed": -1}, 422, "seed"),
        ({"seed": 2**53}, 422, "seed: input should be less than 9007199254740992"),
        ({"edit": {"kind": "vary", "image": "x", "strength": 1.0}}, 422, "strength: input should be less than 1"),
        ({"edit": {"kind": "vary", "image": "x", "proposals": 10**9}}, 422, "proposals: input should be less than"),
        ({"edit": {"kind": "vary", "image": "x", "refinement_passes": 3}}, 422, "refinement_passes: input should be"),
        ({"edit": {"kind": "extend", "image": "x", "direction": "left", "amount": 2.0}}, 422, "amount: input should"),
        ({"rerank": "best"}, 422, "rerank"),
        (
            {"rerank": "caption_likelihood"},
            400,
            "rerank=caption_likelihood needs a model that was trained with caption",
        ),
        ({"decoder": True}, 400, "no diffusion decoder"),
        ({"colour": "red"}, 422, "there is no setting 'colour'"),
        ({"candidate": 3}, 422, "did you mean candidates?"),
    ],
)
def test_a_wrong_setting_is_refused_in_a_sentence(studio, settings, status, sentence):
    answer = studio.client.post("/api/jobs", json={"caption": "a red circle", **settings})
    assert answer.status_code == status, answer.text
    message = answer.json()["error"]["message"]
    assert sentence in message and "\n" not in message and len(message) < 2500


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b'{"caption": "\\ud800"}',
        b'{"caption": "a", "top_p": NaN}',
        b'{"caption": "a", "guidance": 1e999}',
    ],
)
def test_a_broken_body_is_refused(studio, body):
    answer = studio.client.post("/api/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422 and answer.json()["error"]["message"]


def test_a_number_of_thousands_of_digits_is_refused(studio):
    body = b'{"caption": "a red circle", "top_k": ' + b"9" * 5000 + b"}"
    answer = studio.client.post("/api/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422) and answer.json()["error"]["message"]


def test_the_caption_policy_is_asked(make_session, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.txt").write_text("circle\tno circles here\n")
    with running(make_session(caption_policy=str(tmp_path / "policy.txt"))) as studio:
        answer = studio.client.post("/api/jobs", json={"caption": "a red circle"})
        assert answer.status_code == 400 and "no circles here" in answer.json()["error"]["message"]
        assert studio.drawn(caption="a red square", candidates=1)
