"""What the server of the page refuses, and that nothing of it is left."""

import http.client
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from web_samples import TwoBoxes, write_photo

pytest.importorskip("gradio")

from vitadapter.web import Limits, page, serving

PREDICTOR = TwoBoxes()
SECRET = "a line that must not be seen"


class Client:
    """Asks a server, without the help of a browser."""

    def __init__(self, address: str) -> None:
        self.host = urlsplit(address).netloc

    def ask(
        self, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, str]:
        connection = http.client.HTTPConnection(self.host, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET" if body is None else "POST", path, body, named)
        answer = connection.getresponse()
        content = answer.read().decode(errors="replace")
        connection.close()
        return answer.status, answer.headers, content

    def upload(self, content: bytes, name: str = "a.png") -> tuple[int, str]:
        head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + b"\r\n--x--\r\n"
        kind = {"Content_Type": "multipart/form-data; boundary=x"}
        status, _, answer = self.ask("/gradio_api/upload", body, **kind)
        return status, answer

    def answer(self, path: str) -> str:
        """What the page is told when it says that an upload lies there."""
        config = json.loads(self.ask("/config")[2])
        (upload,) = (c["id"] for c in config["components"] if c["props"].get("elem_id") == "upload")
        (event,) = (d["id"] for d in config["dependencies"] if [upload, "input"] in d["targets"])
        file = {"path": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
        data = {
            "data": [file, 0.5, [], ["Boxes"]],
            "fn_index": event,
            "session_hash": "s",
            "trigger_id": upload,
        }
        kind = {"Content_Type": "application/json"}
        assert self.ask("/gradio_api/queue/join", json.dumps(data).encode(), **kind)[0] == 200
        return self.ask("/gradio_api/queue/data?session_hash=s")[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder of the server."""
    path = tmp_path_factory.mktemp("work")
    (path / "secret.txt").write_text(SECRET)
    (path / ".gradio" / "cached_examples").mkdir(parents=True)
    (path / ".gradio" / "cached_examples" / "secret.txt").write_text(SECRET)
    return path


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setenv("GRADIO_ALLOWED_PATHS", "/")
    patch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # which nobody listens at
    with serving(PREDICTOR, "title", Limits(megabytes=0.1), "127.0.0.1", None) as address:
        yield Client(address)
    patch.undo()


def test_the_page_loads_nothing_from_elsewhere(client: Client) -> None:
    status, headers, content = client.ask("/")
    assert status == 200
    assert "title" in content
    assert headers["Content-Security-Policy"].startswith("default-src 'self' data: blob:")


@pytest.mark.parametrize("prefix", ["/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/"])
def test_no_file_of_the_machine_is_served(client: Client, folder: Path, prefix: str) -> None:
    inside = Path(os.environ["GRADIO_TEMP_DIR"])
    up = "../" * (len(inside.parts) + 5)
    paths = [
        "/etc/passwd",
        "secret.txt",
        folder / "secret.txt",
        ".gradio/cached_examples/secret.txt",
        folder / ".gradio" / "cached_examples" / "secret.txt",
        f"{inside}/{up}etc/passwd",
        f"{inside}/{up}{folder}/.gradio/cached_examples/secret.txt",
        inside,
    ]
    for path in paths:
        for written in (str(path), quote(str(path), safe="")):
            status, _, content = client.ask(prefix + written)
            assert status in (403, 404), path
            assert SECRET not in content


def test_no_file_of_the_machine_is_predicted(client: Client, folder: Path) -> None:
    """Whoever can reach the page could otherwise see every image of the machine."""
    private = write_photo(folder / "private.png")
    assert "process_completed" in (said := client.answer(str(private)))
    assert '"success":false' in said
    assert PREDICTOR.images == []
    assert private.exists()


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=http://example.com/",
        "/gradio_api/proxy=http://example.com/",
        "/gradio_api/info",
        "/gradio_api/runs",
        "/monitoring",
        "/docs",
        "/openapi.json",
    ],
)
def test_what_the_page_does_not_ask_for_is_refused(client: Client, path: str) -> None:
    assert client.ask(path)[0] == 404


def test_other_pages_cannot_use_it(client: Client) -> None:
    assert client.ask("/config", Host="attacker.example")[0] == 403
    assert client.ask("/config", Origin="http://attacker.example")[0] == 403
    assert client.ask("/config", Origin="null")[0] == 403
    assert client.ask("/config", Origin=f"http://{client.host}")[0] == 200


def test_uploads_are_bounded(client: Client) -> None:
    assert client.upload(b"x" * 99_000)[0] == 200
    assert client.upload(b"x" * 101_000)[0] == 413
    assert client.upload(b"x" * 300_000)[0] == 413
    body = b"x" * 300_000
    assert client.ask("/gradio_api/queue/join", body, Content_Type="application/json")[0] == 413
    chunked = {"Transfer_Encoding": "chunked", "Content_Type": "application/json"}
    assert client.ask("/gradio_api/queue/join", b"0\r\n\r\n", **chunked)[0] in (400, 411)


def test_an_upload_is_answered_and_deleted(client: Client, tmp_path: Path) -> None:
    status, answer = client.upload(write_photo(tmp_path / "a.png").read_bytes())
    assert status == 200
    (path,) = json.loads(answer)
    assert Path(path).is_file()
    assert "cat 0.90" in client.answer(path)
    assert len(PREDICTOR.images) == 1
    assert not Path(path).exists()


def test_nothing_is_left(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    before = dict(os.environ)
    with serving(PREDICTOR, "title", Limits(), "127.0.0.1", None) as address:
        _, answer = Client(address).upload(b"x")
        (path,) = json.loads(answer)
        assert Path(path).is_relative_to(tmp_path)
    assert list((tmp_path / "temporary").iterdir()) == []
    assert dict(os.environ) == before
    with pytest.raises(ConnectionRefusedError):
        Client(address).ask("/")


def test_files_are_deleted_while_it_runs(monkeypatch) -> None:
    monkeypatch.setattr(page, "_FORGET_EVERY", 1)
    monkeypatch.setattr(page, "_FORGET_AFTER", 1)
    with serving(PREDICTOR, "title", Limits(), "127.0.0.1", None) as address:
        (path,) = json.loads(Client(address).upload(b"x")[1])
        assert Path(path).exists()
        patience = time.monotonic() + 30
        while Path(path).exists():
            assert time.monotonic() < patience
            time.sleep(0.1)


def test_addresses_that_cannot_be_served() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(OSError, match=f"cannot be served at 127.0.0.1:{port}: .*in use"),
            serving(PREDICTOR, "title", Limits(), "127.0.0.1", port),
        ):
            pass
    with (
        pytest.raises(OSError, match=r"cannot be served at 192\.0\.2\.1"),
        serving(PREDICTOR, "title", Limits(), "192.0.2.1", None),
    ):
        pass
