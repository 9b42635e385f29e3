"""The user's copies of downloads: made once, checked, and safe from others."""

import contextlib
import hashlib
import io
import multiprocessing
import stat
import threading
import zipfile
from pathlib import Path

import filelock
import pytest
import torch
from file_server import FileServer, answer, cut_after

from vitadapter.checkpoint import cache as module
from vitadapter.checkpoint.cache import cached_path, fetch_url, sha256_of
from vitadapter.checkpoint.reading import read_state_dict

NAME = "/org/release/w.pth"


def saved(value: float = 1.0) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"a": torch.full((10_000,), value)}}, file)
    return file.getvalue()


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.pth.tar", content)
    return file.getvalue()


@pytest.fixture
def url(server: FileServer) -> str:
    server.files[NAME], server.tags[NAME] = saved(), '"1"'
    return server.url(NAME)


def names(path: Path) -> list[str]:
    """What lies beside a checkpoint, but for the lock."""
    return sorted(p.name for p in path.parent.iterdir() if not p.name.endswith(".lock"))


def test_once_per_user(url: str, server: FileServer, cache: Path) -> None:
    path = fetch_url(url, len(saved()), hashlib.sha256(saved()).hexdigest())
    assert path == cached_path(url) == cache / f"http%3A127.0.0.1%3A{server.server_port}{NAME}"
    assert read_state_dict(path)["a"].shape == (10_000,)
    assert names(path) == ["w.pth"]
    assert fetch_url(url) == path
    assert len(server.ranges) == 1
    for folder in (path.parent, path.parent.parent, cache):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_archive(server: FileServer, cache: Path) -> None:
    server.files["/w.zip"] = zipped(w=saved())
    size, sha256 = len(saved()), hashlib.sha256(saved()).hexdigest()
    path = fetch_url(server.url("/w.zip"), size, sha256)
    assert path.name == "w.zip.pth"
    assert path.read_bytes() == saved()
    assert names(path) == ["w.zip.pth"]
    fetch_url(server.url("/w.zip"))
    assert len(server.ranges) == 1


def test_an_archive_with_two_checkpoints(server: FileServer, cache: Path) -> None:
    server.files["/w.zip"] = zipped(a=saved(), b=saved())
    with pytest.raises(ValueError, match=r"should have one checkpoint inside, it has 2"):
        fetch_url(server.url("/w.zip"))
    assert names(cached_path(server.url("/w.zip"))) == []


def test_what_the_user_puts_there(server: FileServer, cache: Path) -> None:
    """As the message of a failed download says."""
    server.faults = [answer(404), answer(404)]
    for name, content in (("/w.pth", saved()), ("/v.zip", zipped(v=saved()))):
        with pytest.raises(ValueError, match="answers 404") as failure:
            fetch_url(server.url(name))
        place = Path(str(failure.value).rpartition("put it at ")[2])
        place.write_bytes(content)
        assert fetch_url(server.url(name)).read_bytes() == saved()
    assert len(server.ranges) == 2
    place.write_bytes(zipped(a=b"", b=b""))
    cached_path(server.url("/v.zip")).unlink()
    with pytest.raises(ValueError, match="it has 2"):
        fetch_url(server.url("/v.zip"))
    assert place.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>", r"no checkpoint: it starts with b'<!DOCTYPE"),
        (b"version https://git-lfs.github.com/spec/v1\n", "no checkpoint: it starts with b'vers"),
        (b"", "no checkpoint: it starts with b''"),
        (saved(2.0), "its sha256 is [0-9a-f]{64}, it should be"),
    ],
)
def test_another_file(url: str, server: FileServer, content: bytes, message: str) -> None:
    server.files[NAME] = content
    with pytest.raises(ValueError, match=rf"cannot be downloaded: .*{message}"):
        fetch_url(url, sha256=hashlib.sha256(saved()).hexdigest())
    assert names(cached_path(url)) == []
    server.files[NAME] = saved()
    fetch_url(url, sha256=hashlib.sha256(saved()).hexdigest())


def test_a_copy_that_was_changed(url: str) -> None:
    sha256 = hashlib.sha256(saved()).hexdigest()
    path = fetch_url(url, len(saved()), sha256)
    assert sha256_of(path) == sha256
    path.write_bytes(saved(2.0))
    with pytest.raises(ValueError, match=r"w\.pth is not what .*its sha256 is .*Delete it"):
        fetch_url(url, len(saved()), sha256)
    path.write_bytes(saved()[:-1])
    with pytest.raises(ValueError, match=rf"has {len(saved()) - 1} bytes, it should have"):
        fetch_url(url, len(saved()), sha256)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_can_write(url: str, cache: Path, mode: int) -> None:
    cache.mkdir()
    cache.chmod(mode)
    message = rf"others could change downloads in {cache} .*its mode {mode:o}.*VITADAPTER_CACHE"
    with pytest.raises(ValueError, match=message):
        fetch_url(url)
    cache.chmod(0o755)
    path = fetch_url(url)
    path.parent.chmod(mode)
    with pytest.raises(ValueError, match=r"others could change downloads in .*/release"):
        fetch_url(url)


def test_a_folder_that_cannot_be_made(url: str, cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(ValueError, match=r"cannot be made .*set VITADAPTER_CACHE"):
        fetch_url(url)


def test_where_the_folder_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = "https://host/a/w.pth"
    monkeypatch.delenv("VITADAPTER_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cached_path(url) == tmp_path / ".cache/vitadapter/host/a/w.pth"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cached_path(url) == Path("/x/vitadapter/host/a/w.pth")
    monkeypatch.setenv("VITADAPTER_CACHE", "~/mine")
    assert cached_path(url) == tmp_path / "mine/host/a/w.pth"


def test_different_urls_have_different_places(cache: Path) -> None:
    long = "https://host/" + "a" * 300 + "/w.pth"
    urls = ["https://host/w.pth", "https://host/w.pth?v=1", "https://host/w.pth?v=2", long]
    places = {cached_path(url) for url in (*urls, "https://host/w.zip", "http://host/w.pth")}
    assert len(places) == 6
    assert all(len(name) < 256 for place in places for name in place.parts)


@pytest.mark.parametrize(
    "url", ["https://host/../../w.pth", "https://host/a/./w.pth", "https://host", "file:///etc/w"]
)
def test_urls_that_leave_the_folder(url: str, cache: Path) -> None:
    with pytest.raises(ValueError, match="downloads are of http"):
        fetch_url(url)
    assert not cache.exists()


def fetch_and_read(url: str) -> float:
    return read_state_dict(fetch_url(url))["a"].sum().item()


def test_several_processes_at_once(url: str, server: FileServer) -> None:
    """As the processes of a distributed run: one downloads, and all have the file."""
    server.faults = [cut_after(20_000)]
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        assert pool.map(fetch_and_read, [url] * 4) == [10_000.0] * 4
    assert server.ranges == ["", "bytes=20000-"]


def test_another_process_that_is_stuck(url: str, monkeypatch, caplog) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(module, "_WAITING_SECONDS", 0.1)
    path = cached_path(url)
    path.parent.mkdir(mode=0o700, parents=True)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with filelock.FileLock(f"{path}.lock"):
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with contextlib.ExitStack() as stack:
        stack.callback(thread.join)
        stack.callback(done.set)
        with pytest.raises(ValueError, match="another process that downloads it makes no progr"):
            fetch_url(url)
    assert fetch_url(url) == path
