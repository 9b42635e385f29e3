"""An HTTP server in a thread, which serves files as well or as badly as a test asks for."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["FileServer", "Handler", "answer", "cut_after", "dribble", "serving", "silence"]


class FileServer(ThreadingHTTPServer):
    """Serves `files`, by path; `faults` are answers to the first requests, one each.

    Attributes:
        files: content by path, such as "/a.pth".
        tags: the ETag of a file that has one.
        has_ranges: whether parts of files are served.
        tells_length: whether the size of a file is told.
        content_type: of all files.
        faults: called with the handler instead of serving, in order; None serves.
        ranges: what was asked for so far: the `Range` of each request, "" without.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.has_ranges = self.tells_length = True
        self.content_type = "application/octet-stream"
        self.faults: list[Callable[[Handler, bytes], None] | None] = []
        self.ranges: list[str] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: FileServer

    def do_GET(self) -> None:
        server = self.server
        server.ranges.append(self.headers.get("Range", ""))
        content = server.files.get(self.path)
        fault = server.faults.pop(0) if server.faults else None
        if fault is not None:
            fault(self, content)
        elif content is None:
            self.send_error(404)
        else:
            self.serve(content)

    def serve(self, content: bytes, cut: int | None = None) -> None:
        """The content, or what was asked for of it; of which only `cut` bytes are sent."""
        tag = self.server.tags.get(self.path, "")
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = 0
        if asked and self.server.has_ranges and self.headers.get("If-Range") == tag:
            start = int(asked[1])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if tag:
            self.send_header("ETag", tag)
        self.send_header("Content-Type", self.server.content_type)
        if self.server.tells_length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : len(content) if cut is None else start + cut])

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


def cut_after(count: int) -> Callable[[Handler, bytes], None]:
    """A fault: the connection is closed early."""
    return lambda handler, content: handler.serve(content, cut=count)


def answer(status: int) -> Callable[[Handler, bytes], None]:
    """A fault: an error of the server."""
    return lambda handler, content: handler.send_error(status)


def silence(seconds: float) -> Callable[[Handler, bytes], None]:
    """A fault: there is no answer for a while, and then none."""
    return lambda handler, content: time.sleep(seconds)


def dribble(pieces: int, pause: float) -> Callable[[Handler, bytes], None]:
    """A fault: a few bytes, one by one."""

    def send(handler: Handler, content: bytes) -> None:
        handler.serve(content, cut=0)
        for i in range(pieces):
            handler.wfile.write(content[i : i + 1])
            handler.wfile.flush()
            time.sleep(pause)

    return send


@contextmanager
def serving() -> Iterator[FileServer]:
    """A server on a free port of this machine."""
    server = FileServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
