"""The route that OpenAI's clients call for images: POST /v1/images/generations."""

import asyncio
import base64
import time
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request

from dalle.studio.errors import ApiError
from dalle.studio.requests import GenerationRequest
from dalle.studio.session import Session
from dalle.studio.store import DrawnImage

DISCONNECT_POLL_SECONDS = 1.0  # between checks that the client is still there


def openai_routes(session: Session) -> APIRouter:
    """Return the routes below /v1."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI"])

    @routes.post("/images/generations")
    async def generate(request: Request, body: Annotated[GenerationRequest, Body()]) -> dict[str, Any]:
        """Draw images for a prompt and return them as base64 PNG, best first, in the shape of OpenAI's API.

        `seed`, `candidates` and the other settings of sampling may be given too. Closing the connection cancels.
        """
        job, _ = await asyncio.to_thread(session.submit, body.draw_request(session.image_size))
        try:
            async with aclosing(job.events.read(DISCONNECT_POLL_SECONDS)) as events:
                async for _ in events:
                    if await request.is_disconnected():
                        break
        finally:
            session.jobs.cancel(job)  # no effect on one that has ended
        if job.failure:
            raise ApiError(500, job.failure)
        size = f"{session.image_size}x{session.image_size}"
        data = await asyncio.to_thread(lambda: [_image(session.store.find_drawn(key)) for key in job.images])
        return {"created": int(time.time()), "data": data, "output_format": "png", "size": size}

    return routes


def _image(drawn: DrawnImage) -> dict[str, Any]:
    metadata = {name: drawn.record[name] for name in ("seed", "candidate", "score")}
    return {"b64_json": base64.b64encode(drawn.png()).decode(), **metadata}
