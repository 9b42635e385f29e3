"""The checkpoint inside a zip archive, as parts of the official release are packed."""

import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

__all__ = ["CHECKPOINT_SUFFIXES", "check_unpacked", "unpack_checkpoint"]

CHECKPOINT_SUFFIXES = (".pth", ".pth.tar", ".pt")
"""How the names of checkpoints inside archives end."""

# Weights hardly become smaller when they are compressed.
_MOST_UNPACKING = 4
_SMALL_BYTES = 2**28
_CHUNK_BYTES = 2**20
_ENCRYPTED = 0x1


def check_unpacked(unpacked: int, packed: int) -> None:
    """Refuses archives that would fill memory or disk.

    Args:
        unpacked: bytes that the content says it has.
        packed: bytes of the archive.

    Raises:
        ValueError: it says more than weights could.
    """
    if unpacked > max(_MOST_UNPACKING * packed, _SMALL_BYTES):
        raise ValueError(
            f"it unpacks to {unpacked} bytes, over {_MOST_UNPACKING} times its own size"
        )


def _is_outside(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in name


def _find_checkpoint(archive: zipfile.ZipFile, archive_bytes: int) -> zipfile.ZipInfo:
    infos = [info for info in archive.infolist() if not info.is_dir()]
    if outside := [info.filename for info in infos if _is_outside(info.filename)]:
        raise ValueError(f"{outside[0]!r} in it would be outside of the folder it is unpacked to")
    found = [info for info in infos if info.filename.endswith(CHECKPOINT_SUFFIXES)]
    # What macOS adds to archives.
    found = [info for info in found if not PurePosixPath(info.filename).name.startswith("._")]
    if len(found) != 1:
        names = ", ".join(info.filename for info in (found or infos)[:3]) or "nothing"
        raise ValueError(f"it should have one checkpoint inside, it has {len(found)} ({names})")
    (info,) = found
    if stat.S_ISLNK(info.external_attr >> 16) or info.flag_bits & _ENCRYPTED:
        raise ValueError(f"{info.filename} in it is a link or encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} in it is compressed in an unusual way")
    check_unpacked(info.file_size, archive_bytes)
    return info


def unpack_checkpoint(path: Path, target: Path) -> None:
    """Unpacks the one checkpoint of a zip archive; nothing else of it is written.

    Args:
        path: of the archive.
        target: file to write, whole or, after an error, of any content.

    Raises:
        ValueError: it is no zip archive or damaged, has no checkpoint or several, has names with
            which unpacking would leave the folder, or would become too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            info = _find_checkpoint(archive, path.stat().st_size)
            # Reads no more than the size that was checked.
            with archive.open(info) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, _CHUNK_BYTES)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"the archive {path} is damaged ({error})") from error
    except ValueError as error:
        raise ValueError(f"the archive {path} is not unpacked: {error}") from error
    if target.stat().st_size != info.file_size:
        raise ValueError(f"the archive {path} is damaged: {info.filename} in it is cut off")
