"""Downloads by HTTP that go on where they were broken off, and never wait without end.

iopath's and torch.hub's have no time-outs and start over each time.
"""

import contextlib
import http.client
import logging
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from tqdm import tqdm

__all__ = ["PATIENCE", "Patience", "download"]

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 2**20
_MOST_BYTES = 2**36  # of a file whose size the server does not tell
# Answers that may be others a moment later.
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
_OUT_OF_RANGE = 416
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+)")


@dataclass(frozen=True)
class Patience:
    """How long downloads wait.

    Attributes:
        seconds: for a connection, for an answer, and for the next bytes.
        least_rate: in bytes per second, on the average of that time.
        attempts: for one file; each goes on where the one before was broken off.
        pause: seconds before the second attempt; twice as many before each further one.
    """

    seconds: float = 30.0
    least_rate: float = 1024.0
    attempts: int = 5
    pause: float = 1.0


PATIENCE = Patience()
"""Of all downloads."""


# An answer, or that nothing is left to come (`_OUT_OF_RANGE`).
_Response = http.client.HTTPResponse | urllib.error.HTTPError


class _InterruptedError(Exception):
    """The connection was lost, or the server asks to come again."""


class _UnreachableError(_InterruptedError):
    """There was no connection."""


def _open(url: str, headers: Mapping[str, str]) -> _Response:
    request = urllib.request.Request(url, headers=dict(headers))
    try:
        response = urllib.request.urlopen(request, timeout=PATIENCE.seconds)
    except urllib.error.HTTPError as error:
        if error.code == _OUT_OF_RANGE:
            return error  # a response like any other
        error.close()
        answer = f"the server answers {error.code} {error.reason}"
        raise (
            _InterruptedError(answer) if error.code in _TEMPORARY else ValueError(answer)
        ) from error
    except urllib.error.URLError as error:
        raise _UnreachableError(str(error.reason)) from error
    except http.client.InvalidURL as error:
        raise ValueError(str(error)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(f"{type(error).__name__}: {error}") from error
    if url.startswith("https:") and not response.url.startswith("https:"):
        response.close()
        raise ValueError(f"it leads to {response.url}, which is not encrypted")
    return response


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """What comes, as long as it comes fast enough."""
    began, received = time.monotonic(), 0
    while True:
        try:
            chunk = response.read1(_CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _InterruptedError(f"{type(error).__name__}: {error}") from error
        if not chunk:
            return
        yield chunk
        received += len(chunk)
        seconds = time.monotonic() - began
        if seconds > PATIENCE.seconds:
            if received < PATIENCE.least_rate * seconds:
                raise _InterruptedError(f"only {received} bytes have come in {seconds:.0f} s")
            began, received = time.monotonic(), 0


def _version(headers: Message) -> str:
    """What tells this version of the file from another, as `If-Range` takes it; "" if nothing."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


class _Partial:
    """What has come of a file so far, beside the place where the whole is to be."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f"{target.name}.partial")
        self._version_file = target.with_name(f"{target.name}.partial.version")

    @property
    def version(self) -> str:
        """Of the file that this is a part of."""
        with contextlib.suppress(OSError, UnicodeError):
            return self._version_file.read_text()
        return ""

    @property
    def size(self) -> int:
        """Bytes that a download can go on from."""
        return self.path.stat().st_size if self.version and self.path.is_file() else 0

    def start_over(self, version: str) -> None:
        self.path.write_bytes(b"")
        self._version_file.write_text(version)

    def remove(self) -> None:
        for path in (self._version_file, self.path):
            path.unlink(missing_ok=True)

    def move_to(self, target: Path) -> None:
        self.path.replace(target)
        self._version_file.unlink(missing_ok=True)


def _begin(response: _Response, partial: _Partial) -> int | None:
    """Prepares the partial file for what the server sends; returns the size of the whole."""
    headers = response.headers
    if headers.get_content_type() == "text/html":
        raise ValueError("it is a web page, not a file of weights")
    if response.status not in (206, _OUT_OF_RANGE):  # from the beginning
        partial.start_over(_version(headers))
        length = headers.get("Content-Length", "")
        return int(length) if length.isdecimal() else None
    found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    is_other = response.status == 206 and _version(headers) != partial.version
    if found is None or int(found[1] or found[2]) != partial.size or is_other:
        partial.remove()
        raise _InterruptedError("the server has another version of the file by now")
    return int(found[2])


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(f"{folder} has room for {free} bytes, {needed} are still to come")


def _attempt(url: str, partial: _Partial, size: int | None) -> None:
    """Gets what is lacking."""
    start = partial.size
    headers = {"Range": f"bytes={start}-", "If-Range": partial.version} if start else {}
    with contextlib.closing(_open(url, headers)) as response:
        total = _begin(response, partial)
        start = partial.size
        if size is not None and total is not None and total != size:
            raise ValueError(f"the server has a file of {total} bytes, it should have {size}")
        if isinstance(response, urllib.error.HTTPError):  # all is there
            return
        _check_room(partial.path.parent, 0 if total is None else total - start)
        bar = tqdm(
            desc=url.rpartition("/")[2],
            initial=start,
            total=total,
            unit="B",
            unit_scale=True,
            disable=None,  # shown in a terminal only
        )
        received, most = start, _MOST_BYTES if total is None else total
        with bar, partial.path.open("ab") as file:
            for chunk in _chunks(response):
                file.write(chunk)
                bar.update(len(chunk))
                received += len(chunk)
                if received > most:
                    raise ValueError(f"the server sends more than {most} bytes")
    if total is not None and received < total:
        raise _InterruptedError(f"the connection was closed after {received} of {total} bytes")


def download(url: str, target: Path, size: int | None = None) -> None:
    """Downloads a file; `target` is whole or absent, whatever happens.

    What has come when a download fails is kept beside `target`, and the next one goes on from
    there if the server allows it. Only one process may download a file at a time.

    Args:
        url: of http or https.
        target: in a folder that exists.
        size: that the file must have, in bytes; None for any.

    Raises:
        ValueError: says why there is no such file, or why it cannot be had now.
    """
    partial = _Partial(target)
    logger.info("Downloading %s to %s", url, target)
    reason = ""
    for attempt in range(PATIENCE.attempts):
        if attempt > 0:
            pause = PATIENCE.pause * 2 ** (attempt - 1)
            logger.warning("%s: %s. Trying again in %g s", url, reason, pause)
            time.sleep(pause)
        try:
            _attempt(url, partial, size)
        except _InterruptedError as error:
            reason = str(error)
            if attempt == 0 and isinstance(error, _UnreachableError):
                raise ValueError(f"there is no connection ({reason})") from error
        except OSError as error:
            raise ValueError(f"{error.filename or target} cannot be written: {error}") from error
        else:
            partial.move_to(target)
            return
    raise ValueError(f"the last of {PATIENCE.attempts} attempts has failed too ({reason})")
