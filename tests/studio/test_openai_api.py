"""POST /v1/images/generations, called by OpenAI's own client."""

import base64
import io
import threading

import pytest
from PIL import Image
from running_studio import TOKEN

openai = pytest.importorskip("openai", reason="needs the package openai, of the extra dev")


@pytest.fixture(scope="module")
def client(studio):
    with openai.OpenAI(base_url=f"{studio.address}/v1", api_key=TOKEN, max_retries=0) as client:
        yield client


def decoded(image) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(image.b64_json)))


def test_the_client_gets_the_images_of_generate_best_first(studio, client):
    expected = studio.session.dalle.generate("a red circle", candidates=6, keep=3, seed=5, top_k=4)
    answer = client.images.generate(
        model="dall-e",
        prompt="a red circle",
        n=3,
        size="8x8",
        response_format="b64_json",
        user="me",
        extra_body={"seed": 5, "candidates": 6, "top_k": 4},
    )
    assert [decoded(image).tobytes() for image in answer.data] == [image.tobytes() for image in expected.images]
    assert [image.candidate for image in answer.data] == expected.candidates
    assert {image.seed for image in answer.data} == {5} and answer.created > 1_700_000_000


def test_one_image_of_a_random_seed_is_the_default(client):
    answers = [client.images.generate(prompt="a red circle") for _ in range(2)]
    assert [len(answer.data) for answer in answers] == [1, 1]
    assert answers[0].data[0].seed != answers[1].data[0].seed
    assert decoded(answers[0].data[0]).size == (8, 8)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"size": "1024x1024"}, "size=1024x1024 is not a size of this model; use 8x8 or auto"),
        ({"response_format": "url"}, "response_format must be b64_json"),
        ({"n": 65}, "candidates=65 are more than this studio draws"),
        ({"prompt": ""}, "caption"),
        ({"prompt": "word " * 500}, "caption"),
        ({"extra_body": {"candidates": 1}, "n": 2}, "n=2 of candidates=1 is impossible"),
        ({"extra_body": {"temperature": -1}}, "temperature=-1"),
    ],
)
def test_a_wrong_request_is_a_bad_request_with_a_sentence(client, settings, sentence):
    with pytest.raises(openai.BadRequestError) as error:
        client.images.generate(**{"prompt": "a red circle", **settings})
    assert sentence in error.value.body["message"]


def test_a_misspelt_setting_is_named(client):
    with pytest.raises(openai.UnprocessableEntityError, match="did you mean temperature"):
        client.images.generate(prompt="a red circle", extra_body={"temprature": 1})


def test_a_wrong_key_is_an_authentication_error(studio):
    with (
        openai.OpenAI(base_url=f"{studio.address}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="token"),
    ):
        client.images.generate(prompt="a red circle")


def test_the_route_is_in_the_openapi_document(studio):
    document = studio.client.get("/openapi.json").json()
    operation = document["paths"]["/v1/images/generations"]["post"]
    assert operation["security"]
    fields = document["components"]["schemas"]["GenerationRequest"]["properties"]
    assert {"prompt", "n", "size", "response_format", "seed"} <= set(fields)


def test_a_client_that_leaves_cancels_its_drawing(studio):
    blocked, release = threading.Event(), threading.Event()
    drawer = studio.session.jobs._run

    def slow(job):
        blocked.set()
        release.wait(20)
        drawer(job)

    studio.session.jobs._run = slow
    try:
        with (
            openai.OpenAI(base_url=f"{studio.address}/v1", api_key=TOKEN, max_retries=0, timeout=1) as client,
            pytest.raises(openai.APITimeoutError),
        ):
            client.images.generate(prompt="a red circle")
        assert blocked.is_set()
        (job,) = [running_job for running_job in studio.session.jobs._jobs.values() if not running_job.events.ended]
        for _ in range(100):
            if job.cancelled:
                break
            release.wait(0.1)
        assert job.cancelled
    finally:
        release.set()
        studio.session.jobs._run = drawer


def test_text_that_no_answer_can_hold_is_replaced_in_the_sentence(studio):
    body = b'{"prompt": "a red circle", "size": "\\ud800"}'
    answer = studio.client.post("/v1/images/generations", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert "size=? is not a size of this model" in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"null", b"[]"])
def test_a_body_that_is_no_object_is_refused_with_what_to_send(studio, body):
    answer = studio.client.post("/v1/images/generations", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert "must be a JSON object" in answer.json()["error"]["message"]
