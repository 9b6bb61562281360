"""Checks of every request, and headers of every answer: Host, Origin, token, body size.

A web site that the user visits can send requests to this computer, and by DNS rebinding under its own name. So Host
must be one of this server's names, an Origin must be its own, and all but the page itself needs the token. There are no
cookies, which a browser would send for others.
"""

import hmac
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dalle.studio.errors import ApiError, error_response
from dalle.studio.uploads import MAX_UPLOAD_BYTES

UPLOADS = "/api/uploads"
MAX_JSON_BYTES = 256_000
PUBLIC = ("/", "/openapi.json", "/favicon.ico")  # and all below /static/: they hold no secrets
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass(frozen=True)
class Security:
    """ASGI application that checks requests before `app` sees them."""

    app: ASGIApp
    token: str
    hosts: Collection[str]  # values of Host that are this server, in lower case, with the port
    secure_hosts: Collection[str] = ()  # those of them that a proxy may offer by https

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers["Cache-Control"] = "no-cache" if _is_public(scope["path"]) else "no-store"
            await send(message)

        refusal = self._refusal(scope["path"], Headers(scope=scope))
        if refusal is None:
            limit = MAX_UPLOAD_BYTES if scope["path"] == UPLOADS else MAX_JSON_BYTES
            declared = Headers(scope=scope).get("content-length", "")
            size = int(declared) if declared.isdecimal() else 0
            await self.app(scope, _limited(receive, limit, size), send_with_headers)
        else:
            response = error_response(refusal.status_code, refusal.detail, refusal.headers)
            await response(scope, receive, send_with_headers)

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        """Return the error of a request that is not from this server's page or from an owner of the token."""
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            return ApiError(
                403, "this Host is no name of the studio; open its link, or start it with hosts=[<address>]"
            )
        host = hosts[0].lower()
        own_origins = {f"http://{host}"} | ({f"https://{host}"} if host in self.secure_hosts else set())
        if any(origin.lower() not in own_origins for origin in origins):
            return ApiError(403, "requests from other web sites are refused; open the link that the studio printed")
        if _is_public(path):
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        token_matches = hmac.compare_digest(token.strip().encode(), self.token.encode())
        if scheme.lower() != "bearer" or not token_matches:
            sentence = "the token is missing or wrong; open the link that the studio printed last"
            return ApiError(401, sentence, {"WWW-Authenticate": "Bearer"})
        return None


def loopback_hosts(port: int) -> set[str]:
    """Return the values of Host under which a server of this computer's loopback addresses is reached."""
    names = ("127.0.0.1", "localhost", "[::1]")
    return {f"{name}:{port}" for name in names} | (set(names) if port == 80 else set())


def _is_public(path: str) -> bool:
    return path in PUBLIC or path.startswith("/static/")


def _limited(receive: Receive, limit: int, declared: int) -> Receive:
    """Return a `receive` that raises ApiError once a body has more than `limit` bytes, or declares more.

    declared: size that the headers say. A smaller one is not trusted.
    """
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if max(received, declared) <= limit:
            return message
        # read on for a while: a browser shows no answer to a request that it is still sending
        while message.get("more_body") and received < 5 * limit:
            message = await receive()
            received += len(message.get("body", b""))
        limit_text = f"{limit // 10**6} MB" if limit >= 10**6 else f"{limit // 1000} kB"
        raise ApiError(413, f"the body is larger than {limit_text}, the most that the studio reads here")

    return limited
