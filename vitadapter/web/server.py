"""Serves the page until the `with` statement ends, and leaves no file behind."""

import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gradio import routes
from starlette.middleware import Middleware

from .guard import Guard
from .page import Page
from .uploads import Answerer, Limits, Predictor

__all__ = ["serving"]

_FORM_BYTES = 10**5  # of a request beside the file in it


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _without_proxy(host: str) -> dict[str, str]:
    """Gradio asks the server that it has started, which a proxy does not reach."""
    name = "no_proxy"
    known = os.environ.get(name) or os.environ.get(name.upper())
    return dict.fromkeys((name, name.upper()), ",".join(filter(None, [known, host, "localhost"])))


def _check_address(host: str, port: int | None) -> None:
    """Raises OSError unless a server can listen there; Gradio would try for minutes."""
    try:
        socket.create_server((host, port or 0)).close()
    except OSError as error:
        where = host if port is None else f"{host}:{port}"
        raise OSError(f"the page cannot be served at {where}: {error.strerror}") from error


@contextmanager
def serving(
    predictor: Predictor, title: str, limits: Limits, host: str, port: int | None
) -> Iterator[str]:
    """Serves the page for as long as the `with` statement runs.

    Args:
        predictor: of images.
        title: of the page.
        limits: of uploads.
        host: name or IPv4 address to listen at.
        port: to listen at; None for the first free one from 7860 on.

    Yields:
        The address of the page.

    Raises:
        OSError: the port is not free, or the host is not one of this machine's.
    """
    _check_address(host, port)
    max_bytes = limits.bytes
    with tempfile.TemporaryDirectory(prefix="vitadapter-web-") as made:
        folder = Path(made).resolve()
        guard = Middleware(Guard, files=folder, max_bytes=max_bytes + _FORM_BYTES, host=host)
        with _environment({"GRADIO_TEMP_DIR": str(folder), **_without_proxy(host)}):
            # Gradio makes a folder there, and has read the environment when it was imported.
            routes.DEFAULT_TEMP_DIR = str(folder)
            page = Page(Answerer(predictor, limits, folder), title).blocks()
            # What Gradio would otherwise take from the environment is said here. It is launched
            # rather than mounted: a page that is mounted takes any path as that of an upload.
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                max_file_size=max_bytes,
                app_kwargs={"middleware": [guard]},
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                mcp_server=False,
                num_workers=0,
                pwa=False,
                root_path="",
                ssr_mode=False,
            )
            try:
                yield address
            finally:
                page.close(verbose=False)
