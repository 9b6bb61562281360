"""Errors of the HTTP API: one sentence as JSON, in the shape of OpenAI's API."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

TYPES = {401: "authentication_error", 403: "authentication_error", 404: "not_found", 429: "queue_full"}


class ApiError(HTTPException):
    """Error that the API returns to the client: an HTTP status, and one sentence as the message."""


def error_response(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the JSON response of an error with this HTTP status and message, in the format of OpenAI's API."""
    sentence = sentence.encode("utf-8", "replace").decode()  # a request may hold lone surrogates, which no answer can
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return JSONResponse({"error": {"message": sentence, "type": kind, "param": None, "code": None}}, status, headers)


def add_error_handlers(app: FastAPI) -> None:
    """Register handlers that return each error of `app` as JSON with one sentence."""

    @app.exception_handler(HTTPException)
    def http_error(request: Request, error: HTTPException) -> JSONResponse:
        sentence = error.detail if isinstance(error, ApiError) else _standard_sentence(request, error.status_code)
        return error_response(error.status_code, sentence, error.headers)

    @app.exception_handler(RequestValidationError)
    def invalid_body(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(422, validation_sentence(error.errors()[0]))

    @app.exception_handler(ValueError)
    def refused(request: Request, error: ValueError) -> JSONResponse:
        return error_response(400, str(error))  # of the model, the queue or an upload, for the user

    @app.exception_handler(Exception)
    def unexpected(request: Request, error: Exception) -> JSONResponse:
        return error_response(500, "the studio failed; its terminal says why")


def unknown_field(name: str, field_names: Sequence[str]) -> str:
    """Return the error message for the unknown setting `name`, with the nearest of `field_names`."""
    nearest = get_close_matches(name, field_names, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"choose one of {', '.join(field_names)}"
    return f"there is no setting {name[:80]!r}; {hint}"


def validation_sentence(error: dict[str, Any]) -> str:
    """Return one sentence for the first error that pydantic found in a request."""
    location = ".".join(str(part) for part in error["loc"] if part != "body")
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "json_invalid":
        return f"the body is not JSON: {error.get('ctx', {}).get('error', message)}"
    if error["type"] == "model_attributes_type":
        return "the body must be a JSON object, sent with Content-Type: application/json"
    if error["type"] == "value_error" or not location:  # a sentence of our own
        return message if location else f"the body does not fit: {message}"
    return f"{location[:80]}: {message[:1].lower()}{message[1:]}"


def _standard_sentence(request: Request, status: int) -> str:
    """Return the sentence of an error that the framework raised."""
    path = request.url.path[:80]
    sentences = {404: f"there is nothing at {path}", 405: f"{request.method} is not possible at {path}"}
    return sentences.get(status, "the request cannot be read")
