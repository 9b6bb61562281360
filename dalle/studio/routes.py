"""Routes of the studio's own API, below /api, which its page uses."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.responses import StreamingResponse

from dalle.sampling.output_writer import slug
from dalle.studio.requests import DrawRequest
from dalle.studio.session import Session
from dalle.studio.store import DrawnImage, StoredImage

Responses = dict[int | str, dict[str, Any]]

IMAGE_BODY = {"requestBody": {"required": True, "content": {"image/*": {"schema": {"type": "string"}}}}}
PNG: Responses = {200: {"content": {"image/png": {}}, "description": "the image, with its settings inside"}}
STREAM: Responses = {
    200: {"content": {"text/event-stream": {}}, "description": "server-sent events, from the first to the last"}
}


def api_routes(session: Session) -> APIRouter:
    """Return the routes below /api."""
    routes = APIRouter(prefix="/api", tags=["studio"])
    store, jobs = session.store, session.jobs

    @routes.get("/model")
    async def get_model() -> dict[str, Any]:
        """Describe the loaded model: its sizes, example captions, limits, and what it can do."""
        return session.describe()

    @routes.post("/uploads", openapi_extra=IMAGE_BODY)
    async def upload(request: Request) -> dict[str, Any]:
        """Upload an image or a mask: the bytes of a PNG, JPEG, WebP or GIF file.

        `settings` are those that this project wrote into a PNG, or null; `left_out` names those it has not.
        """
        session.image_work.check_capacity()  # before megabytes are read
        return await session.image_work.run(session.upload, await request.body())

    @routes.post("/jobs", status_code=202)
    async def draw(request: Annotated[DrawRequest, Body()]) -> dict[str, Any]:
        """Draw candidates for a caption, or edit an image. `position` is the number of drawings before this one."""
        # edits encode their image
        run_in_thread = asyncio.to_thread if request.edit is None else session.image_work.run
        job, position = await run_in_thread(session.submit, request)
        return {"job": job.id, "position": position}

    @routes.get("/jobs/{job}/events", responses=STREAM, response_class=StreamingResponse)
    async def get_events(job: str) -> StreamingResponse:
        """Stream what happens to a drawing: queued, started, partial, image, ranked, then done, cancelled or failed."""
        return StreamingResponse(jobs.get(job).events.read(), media_type="text/event-stream")

    @routes.post("/jobs/{job}/cancel")
    async def cancel(job: str) -> dict[str, bool]:
        """Cancel a drawing. Its finished candidates are ranked and kept."""
        jobs.cancel(jobs.get(job))
        return {"cancelled": True}

    @routes.get("/images/{image}", responses=PNG, response_class=Response)
    async def get_image(image: str, download: Annotated[bool, Query()] = False) -> Response:
        """Return an image as PNG; with `download` as a file to save."""
        stored = store.find(image)
        headers = {"Content-Disposition": f'attachment; filename="{_file_name(stored)}"'} if download else {}
        return Response(await asyncio.to_thread(stored.png), media_type="image/png", headers=headers)

    @routes.get("/images/{image}/attention")
    async def get_attention(image: str) -> dict[str, Any]:
        """Return a heat map of the attention to each word of the caption."""
        return {"words": await session.image_work.run(session.attention, image)}

    @routes.get("/images/{image}/nearest")
    async def get_nearest(image: str) -> dict[str, Any]:
        """Return the training images that are nearest to a drawn image."""
        return await session.image_work.run(session.nearest, image)

    return routes


def _file_name(stored: StoredImage) -> str:
    """Return a file name of letters, digits, hyphens and a dot."""
    if not isinstance(stored, DrawnImage):
        return "image.png"
    name = slug(stored.record["caption"]).encode("ascii", "ignore").decode().strip("-") or "image"
    return f"{name}-{stored.record['seed']}-{stored.record['candidate']}.png"
