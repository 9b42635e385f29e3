"""Downloads from a server on this machine that behaves well, and badly in every way."""

import dataclasses
import logging
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from file_server import FileServer, Handler, answer, cut_after, dribble, silence

from vitadapter.checkpoint import download as module
from vitadapter.checkpoint.download import download

CONTENT = bytes(range(256)) * 300
NAME = "/release/w.pth"


@pytest.fixture
def target(server: FileServer, tmp_path: Path) -> Path:
    """Of the download of a file that is served as it should be."""
    server.files[NAME], server.tags[NAME] = CONTENT, '"1"'
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "w.pth"


def beside(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_a_file(server: FileServer, target: Path) -> None:
    download(server.url(NAME), target, size=len(CONTENT))
    assert target.read_bytes() == CONTENT
    assert beside(target) == ["w.pth"]
    assert server.ranges == [""]


@pytest.mark.parametrize("tells_length", [True, False])
def test_an_empty_and_an_unmeasured_file(
    server: FileServer, target: Path, tells_length: bool
) -> None:
    server.tells_length = tells_length
    for content in (b"", CONTENT):
        server.files[NAME] = content
        download(server.url(NAME), target)
        assert target.read_bytes() == content


def test_a_broken_download_goes_on(server: FileServer, target: Path, caplog) -> None:
    server.faults = [cut_after(1000), answer(503), cut_after(5000)]
    with caplog.at_level(logging.WARNING):
        download(server.url(NAME), target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ["", "bytes=1000-", "bytes=1000-", "bytes=6000-"]
    assert f"closed after 1000 of {len(CONTENT)} bytes. Trying again" in caplog.text
    assert beside(target) == ["w.pth"]


def test_the_next_call_goes_on_too(server: FileServer, target: Path) -> None:
    server.faults = [cut_after(100)] * 5
    with pytest.raises(ValueError, match=r"last of 5 attempts .* after 500 of \d+ bytes"):
        download(server.url(NAME), target)
    assert not target.exists()
    download(server.url(NAME), target)
    assert target.read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=500-"


def test_without_ranges_it_starts_over(server: FileServer, target: Path) -> None:
    server.has_ranges = False
    server.faults = [cut_after(1000)]
    download(server.url(NAME), target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ["", "bytes=1000-"]


def test_a_version_without_a_tag_is_not_continued(server: FileServer, target: Path) -> None:
    del server.tags[NAME]
    server.faults = [cut_after(1000)]
    download(server.url(NAME), target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ["", ""]


@pytest.mark.parametrize("minds_versions", [True, False])
def test_a_file_that_changes_meanwhile(
    server: FileServer, target: Path, minds_versions: bool
) -> None:
    """Also if the server does not look at `If-Range`."""

    def change(handler: Handler, content: bytes) -> None:
        server.files[NAME], server.tags[NAME] = CONTENT[::-1], '"2"'
        if not minds_versions:
            handler.headers.replace_header("If-Range", '"2"')
        handler.serve(server.files[NAME])

    server.faults = [cut_after(1000), change]
    download(server.url(NAME), target)
    assert target.read_bytes() == CONTENT[::-1]
    assert server.ranges == ["", "bytes=1000-"] + [""] * (not minds_versions)


def test_all_had_come_when_the_process_was_killed(server: FileServer, target: Path) -> None:
    target.with_name("w.pth.partial").write_bytes(CONTENT)
    target.with_name("w.pth.partial.version").write_text('"1"')
    download(server.url(NAME), target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT)}-"]
    target.with_name("w.pth.partial").write_bytes(CONTENT + b"too much")
    target.with_name("w.pth.partial.version").write_text('"1"')
    download(server.url(NAME), target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "requests"), [(404, 1), (403, 1), (410, 1), (500, 5), (503, 5), (429, 5)]
)
def test_errors_of_the_server(server: FileServer, target: Path, status: int, requests: int) -> None:
    server.faults = [answer(status)] * 9
    with pytest.raises(ValueError, match=f"the server answers {status}"):
        download(server.url(NAME), target)
    assert len(server.ranges) == requests
    assert beside(target) == []


@pytest.mark.parametrize("fault", [silence(1.0), dribble(8, 0.1)])
def test_slow_and_silent_servers(
    server: FileServer, target: Path, fault: Callable[[Handler, bytes], None]
) -> None:
    server.faults = [fault]
    download(server.url(NAME), target)
    assert target.read_bytes() == CONTENT
    assert len(server.ranges) == 2


def test_patience_ends(server: FileServer, target: Path, monkeypatch) -> None:
    patience = dataclasses.replace(module.PATIENCE, seconds=0.1, attempts=2)
    monkeypatch.setattr(module, "PATIENCE", patience)
    server.faults = [silence(0.3)] * 2
    with pytest.raises(ValueError, match=r"last of 2 attempts .*timed out"):
        download(server.url(NAME), target)


def test_a_web_page(server: FileServer, target: Path) -> None:
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(ValueError, match="it is a web page"):
        download(server.url(NAME), target)
    assert beside(target) == []


def test_another_size(server: FileServer, target: Path) -> None:
    with pytest.raises(ValueError, match=rf"a file of {len(CONTENT)} bytes, it should have 7"):
        download(server.url(NAME), target, size=7)
    assert not target.exists()


def test_no_connection(target: Path) -> None:
    with socket.socket() as free:  # a port that nobody listens to
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ValueError, match=r"there is no connection \(.*refused"):
        download(f"http://127.0.0.1:{port}/w.pth", target)
    with pytest.raises(ValueError, match="there is no connection"):
        download("http://no-such-host.invalid/w.pth", target)
    with pytest.raises(ValueError, match="control characters"):
        download("http://127.0.0.1/a b", target)


def test_a_full_disk(server: FileServer, target: Path, monkeypatch) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ValueError, match=f"has room for 10 bytes, {len(CONTENT)} are still"):
        download(server.url(NAME), target)


def test_progress_is_shown_in_a_terminal(
    server: FileServer, target: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    download(server.url(NAME), target)
    assert "w.pth: 100%" in capsys.readouterr().err
