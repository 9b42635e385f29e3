"""Zip archives with one checkpoint inside, and with other things."""

import stat
import zipfile
from pathlib import Path

import pytest

from vitadapter.checkpoint.archives import unpack_checkpoint

WEIGHTS = b"\x80\x02" + bytes(1000)


def make(path: Path, members: dict[str | zipfile.ZipInfo, bytes], **options: int) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("name", ["w.pth.tar", "w.pth", "folder/below/w.pt"])
def test_one_checkpoint(tmp_path: Path, name: str, compression: int) -> None:
    extra = f"__MACOSX/._{Path(name).name}"  # of macOS
    members = {"folder/": b"", name: WEIGHTS, "log.txt": b"lines", extra: b"mac"}
    archive = make(tmp_path / "w.zip", members, compression=compression)
    unpack_checkpoint(archive, tmp_path / "out.pth")
    assert (tmp_path / "out.pth").read_bytes() == WEIGHTS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.pth", "w.zip"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, r"one checkpoint inside, it has 0 \(nothing\)"),
        ({"a.txt": b"", "b.py": b""}, r"one checkpoint inside, it has 0 \(a\.txt, b\.py\)"),
        ({"a.pth": WEIGHTS, "b/b.pth.tar": WEIGHTS}, r"it has 2 \(a\.pth, b/b\.pth\.tar\)"),
        ({"../a.pth": WEIGHTS}, r"'\.\./a\.pth' in it would be outside of the folder"),
        ({"a.pth": WEIGHTS, "b/../../evil.sh": b"x"}, "evil.sh' in it would be outside"),
        ({"/etc/a.pth": WEIGHTS}, "'/etc/a.pth' in it would be outside"),
        ({"..\\a.pth": WEIGHTS}, "in it would be outside"),
        ({"C:/a.pth": WEIGHTS}, "in it would be outside"),
        ({link("a.pth"): b"/etc/passwd"}, r"a\.pth in it is a link"),
    ],
)
def test_other_content(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    archive = make(tmp_path / "w.zip", members)
    with pytest.raises(ValueError, match=rf"w\.zip is not unpacked: .*{message}"):
        unpack_checkpoint(archive, tmp_path / "out.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["w.zip"]


def test_a_bomb(tmp_path: Path) -> None:
    archive = tmp_path / "w.zip"
    with (
        zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as opened,
        opened.open("w.pth", "w", force_zip64=True) as file,
    ):
        for _ in range(2**8 + 1):
            file.write(bytes(2**20))
    with pytest.raises(ValueError, match=r"unpacks to 269484032 bytes, over 4 times its own"):
        unpack_checkpoint(archive, tmp_path / "out.pth")


def test_a_bomb_that_tells_a_small_size(tmp_path: Path) -> None:
    """No more is written than was told."""
    content = bytes(10_000)
    archive = make(tmp_path / "w.zip", {"w.pth": content}, compression=zipfile.ZIP_DEFLATED)
    changed = archive.read_bytes().replace(len(content).to_bytes(4, "little"), b"\x64\0\0\0")
    archive.write_bytes(changed)
    with pytest.raises(ValueError, match=r"w\.zip is damaged"):
        unpack_checkpoint(archive, tmp_path / "out.pth")
    assert (tmp_path / "out.pth").stat().st_size <= 100


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_compression(tmp_path: Path, compression: int) -> None:
    archive = make(tmp_path / "w.zip", {"w.pth": WEIGHTS}, compression=compression)
    with pytest.raises(ValueError, match="compressed in an unusual way"):
        unpack_checkpoint(archive, tmp_path / "out.pth")


def test_encrypted(tmp_path: Path) -> None:
    archive = make(tmp_path / "w.zip", {"w.pth": WEIGHTS})
    content = bytearray(archive.read_bytes())
    for start, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(start) + offset] |= 1
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="a link or encrypted"):
        unpack_checkpoint(archive, tmp_path / "out.pth")


@pytest.mark.parametrize("change", ["cut", "flip", "text", "empty"])
def test_damaged(tmp_path: Path, change: str) -> None:
    archive = make(tmp_path / "w.zip", {"w.pth": WEIGHTS})
    content = bytearray(archive.read_bytes())
    content[100] ^= 1
    damaged = {"cut": content[:-30], "flip": content, "text": b"<html>", "empty": b""}
    archive.write_bytes(damaged[change])
    with pytest.raises(ValueError, match=r"w\.zip is damaged"):
        unpack_checkpoint(archive, tmp_path / "out.pth")
