"""The user's copies of downloaded checkpoints: each is downloaded once, and checked."""

import contextlib
import hashlib
import logging
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import filelock

from vitadapter.checkpoint.archives import CHECKPOINT_SUFFIXES, unpack_checkpoint
from vitadapter.checkpoint.download import download

__all__ = ["cache_folder", "cached_path", "fetch_url", "sha256_of"]

logger = logging.getLogger(__name__)

_VARIABLE = "VITADAPTER_CACHE"
_LONGEST_NAME = 150
_CHUNK_BYTES = 2**20
_POLL_SECONDS = 1.0
# That another process which downloads the same file may make no progress.
_WAITING_SECONDS = 600.0
_ARCHIVE = ".zip"
# A zip archive (of torch.save and NumPy too), a pickle of protocol 2 to 5, or safetensors' header.
_CHECKPOINT_START = re.compile(rb"PK\x03\x04|\x80[\x02-\x05]|.{6}\0\0\{", re.DOTALL)


def _make_own(folder: Path) -> None:
    """Makes a folder that nobody else may write into."""
    advice = f"set {_VARIABLE} to a folder of your own"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise ValueError(f"the folder for downloads cannot be made ({error}): {advice}") from error
    is_own = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    if not is_own or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(
            f"others could change downloads in {folder} (its owner is {found.st_uid}, its mode "
            f"{stat.S_IMODE(found.st_mode):o}): chmod go-w it, or {advice}"
        )


def cache_folder() -> Path:
    """The user's folder for downloads: `$VITADAPTER_CACHE`, else `vitadapter` in
    `$XDG_CACHE_HOME` or `~/.cache`."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "vitadapter")
    return Path(os.environ.get(_VARIABLE) or base).expanduser().absolute()


def _download_path(url: str) -> Path:
    """Where the file of a URL is downloaded to."""
    parts = urlsplit(url)
    # What came without encryption does not stand for what was asked for with it.
    host = parts.netloc if parts.scheme == "https" else f"{parts.scheme}:{parts.netloc}"
    names = [quote(name, safe="+%") for name in (host, *parts.path.split("/")) if name]
    if parts.scheme not in ("http", "https") or len(names) < 2 or {".", ".."} & set(names):
        raise ValueError(f"downloads are of http://host/file or https://host/file, got {url}")
    if parts.query or any(len(name) > _LONGEST_NAME for name in names):
        names = [name[-_LONGEST_NAME:] for name in names]
        names.insert(1, hashlib.sha256(url.encode()).hexdigest()[:16])
    return cache_folder().joinpath(*names)


def cached_path(url: str) -> Path:
    """Where the checkpoint of a URL is kept, whether it is there already or not.

    Args:
        url: of http or https; of an archive if it ends in ".zip".

    Raises:
        ValueError: another kind of URL.
    """
    path = _download_path(url)
    is_archive = path.suffix == _ARCHIVE
    return path.with_name(f"{path.name}{CHECKPOINT_SUFFIXES[0]}") if is_archive else path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _check(path: Path, size: int | None, sha256: str | None) -> None:
    """Refuses a file that is no checkpoint, or not the one that is meant."""
    with path.open("rb") as file:
        start = file.read(16)
    if not _CHECKPOINT_START.match(start):
        raise ValueError(f"it is no checkpoint: it starts with {start!r}")
    if size is not None and path.stat().st_size != size:
        raise ValueError(f"it has {path.stat().st_size} bytes, it should have {size}")
    if sha256 is not None and (found := sha256_of(path)) != sha256:
        raise ValueError(f"its sha256 is {found}, it should be {sha256}")


@contextlib.contextmanager
def _alone(kept: Path) -> Iterator[None]:
    """Keeps other processes from downloading the same file; waits for one that does."""
    lock = filelock.FileLock(f"{kept}.lock")
    last: tuple[int, ...] | None = None
    since = time.monotonic()
    while True:
        try:
            lock.acquire(timeout=_POLL_SECONDS)
            break
        except filelock.Timeout as error:
            if last is None:
                logger.info("Waiting for another process that downloads %s", kept)
            beside = sorted(kept.parent.glob(f"{kept.stem}*"))
            sizes = tuple(path.stat().st_size for path in beside if path.is_file())
            if sizes != last:
                last, since = sizes, time.monotonic()
            elif time.monotonic() - since > _WAITING_SECONDS:
                raise ValueError(
                    "another process that downloads it makes no progress: end that process"
                ) from error
        except (NotImplementedError, OSError) as error:
            raise ValueError(
                f"{kept.parent} cannot be locked ({error}): set {_VARIABLE} to a local folder"
            ) from error
    try:
        yield
    finally:
        lock.release()


def _get(url: str, kept: Path, size: int | None, sha256: str | None) -> None:
    """Puts the checkpoint in its place: whole and checked, or not at all."""
    source = _download_path(url)
    unchecked = kept.with_name(f"{kept.name}.unchecked")
    is_archive = source != kept
    has_come = is_archive and source.is_file()  # put there by the user
    if not has_come:
        download(url, source if is_archive else unchecked, None if is_archive else size)
    try:
        if is_archive:
            unpack_checkpoint(source, unchecked)
        _check(unchecked, size, sha256)
    except ValueError:
        unchecked.unlink(missing_ok=True)
        if not has_come:
            source.unlink(missing_ok=True)
        raise
    unchecked.replace(kept)
    if is_archive:
        source.unlink()
    logger.info("%s is in %s", url, kept)


def fetch_url(url: str, size: int | None = None, sha256: str | None = None) -> Path:
    """The checkpoint of a URL, downloaded at the first call and kept in `cache_folder`.

    A zip archive is unpacked. Several processes may ask for the same file at the same time: one
    downloads it, the others wait.

    Args:
        url: of http or https.
        size: of the checkpoint, in bytes; None for any.
        sha256: of the checkpoint; None for any.

    Returns:
        The checkpoint.

    Raises:
        ValueError: it cannot be downloaded, is no checkpoint or another one, or the folder is not
            the user's alone. Says where to put the file instead.
    """
    kept = cached_path(url)
    folder = cache_folder()
    for path in reversed([p for p in kept.parents if p.is_relative_to(folder)]):
        _make_own(path)
    if kept.is_file():
        try:
            _check(kept, size, sha256)
        except ValueError as error:
            raise ValueError(f"{kept} is not what {url} should be: {error}. Delete it") from error
        return kept
    try:
        with _alone(kept):
            if not kept.is_file():
                _get(url, kept, size, sha256)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{url} cannot be downloaded: {error}. You can download it elsewhere and put it at "
            f"{_download_path(url)}"
        ) from error
    return kept
