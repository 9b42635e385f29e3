"""Answers only what the page itself asks for; Gradio's server would answer much more.

Gradio's server also fetches addresses of the internet and serves the files of a folder `.gradio`
below the working folder, for anybody who can reach it.
"""

import os.path
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard"]

# What the page loads, and how it talks to the server.
_EXACT = {
    "/",
    "/config",
    "/favicon.ico",
    "/gradio_api/cancel",
    "/gradio_api/queue/data",
    "/gradio_api/queue/join",
    "/gradio_api/startup-events",
    "/gradio_api/upload",
    "/gradio_api/upload_progress",
    "/theme.css",
}
_BELOW = ("/assets/", "/gradio_api/heartbeat/", "/static/", "/svelte/")
_FILE = "/gradio_api/file="

# Gradio's page contains scripts and styles; nothing is loaded from anywhere else.
_POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'; "
    "form-action 'self'; base-uri 'self'"
)
_LOCAL_NAMES = {"127.0.0.1", "localhost"}


class Guard:
    """Refuses requests that the page does not make.

    Args:
        app: that answers the others.
        files: folder whose files may be served.
        max_bytes: of the body of a request.
        host: that the server listens at. If it is one of this machine alone, requests must name
            such a one, so that a page of the internet cannot pretend that it came from here.
    """

    def __init__(self, app: ASGIApp, files: Path, max_bytes: int, host: str) -> None:
        self._app = app
        self._files = files
        self._max_bytes = max_bytes
        self._names = _LOCAL_NAMES if host in _LOCAL_NAMES else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, _with_policy(send))
        else:
            await refusal(scope, receive, send)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._names is not None and urlsplit(f"//{host}").hostname not in self._names:
            return PlainTextResponse("This page is served to its own machine only.", 403)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return PlainTextResponse("Other pages may not use this one.", 403)
        if not self._is_open(scope["path"]):
            return PlainTextResponse("There is no such page.", 404)
        if scope["method"] not in ("GET", "HEAD"):
            return self._refusal_of_body(headers.get("content-length", ""))
        return None

    def _refusal_of_body(self, length: str) -> PlainTextResponse | None:
        if not length.isdecimal():
            return PlainTextResponse("A request must say how long it is.", 411)
        if int(length) > self._max_bytes:
            return PlainTextResponse("The upload is larger than the maximum allowed size.", 413)
        return None

    def _is_open(self, path: str) -> bool:
        if path.startswith(_FILE):
            file = Path(os.path.normpath(path.removeprefix(_FILE)))
            return file != self._files and file.is_relative_to(self._files)
        return path in _EXACT or path.startswith(_BELOW)


def _with_policy(send: Send) -> Callable:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Content-Security-Policy"] = _POLICY
            headers["Referrer-Policy"] = "no-referrer"
            headers["X-Content-Type-Options"] = "nosniff"
        await send(message)

    return sending
