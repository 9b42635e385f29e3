"""What `vitadapter predict` reads and writes: its inputs, and the files of each of them."""

import argparse
import glob
import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vitadapter.data.image_files import IMAGE_SUFFIXES, is_image_name
from vitadapter.engine.prediction_files import CROPS, JSON, MAPS, InputFiles, picture_suffix

__all__ = ["Planned", "find_inputs", "is_video", "names_a_file", "plan_outputs"]

LIST_SUFFIX = ".txt"
WRITABLE_VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4"}  # with the codec of the writer
VIDEO_SUFFIXES = {*WRITABLE_VIDEO_SUFFIXES, ".mpeg", ".mpg", ".webm"}


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def is_input(path: Path) -> bool:
    return is_image_name(path.name) or (is_video(path) and not path.name.startswith("._"))


def _listed(path: Path) -> list[str]:
    """The inputs of a list, one per line, relative to its folder; lists name no lists."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the list {path} cannot be read: {error}") from error
    names = [line.strip() for line in lines if line.strip()]
    nested = [name for name in names if Path(name).suffix.lower() == LIST_SUFFIX]
    if nested:
        raise ValueError(f"the list {path} must name images, folders or videos, got {nested[0]}")
    return [str(path.parent / name) for name in names]


def _below(folder: Path, path: Path, name: Path) -> Path:
    """The path below a list's folder, so that files of one name differ; `name` if it is not."""
    if ".." in path.parts or not path.is_relative_to(folder):
        return name
    return path.relative_to(folder)


def find_inputs(patterns: Sequence[str], output: str) -> list[tuple[Path, Path]]:
    """Every input with its path relative to the folder that was asked for.

    Raises:
        ValueError: a list of inputs cannot be read.
    """
    found = []
    written = Path(output).resolve()
    for pattern in patterns:
        path = Path(pattern)
        if path.suffix.lower() == LIST_SUFFIX and path.is_file():
            listed = find_inputs(_listed(path), output)
            found += [(p, _below(path.parent, p, name)) for p, name in listed]
            continue
        if path.is_dir():
            members = sorted(p for p in path.rglob("*") if p.is_file() and is_input(p))
            if written != path.resolve():  # an earlier run may have written below this folder
                members = [p for p in members if written not in p.resolve().parents]
            found += [(p, p.relative_to(path)) for p in members]
        elif path.exists() or not glob.has_magic(pattern):
            found.append((path, Path(path.name)))
        else:
            matches = sorted(Path(m) for m in glob.glob(pattern, recursive=True))  # noqa: PTH207
            found += [(p, Path(p.name)) for p in matches if p.is_file()]
    return found


def names_a_file(output: Path) -> bool:
    """Whether `output` is meant as a file: by its suffix, unless there is such a folder."""
    if output.is_dir():
        return False
    kind, _ = mimetypes.guess_type(output.name)
    return is_input(output) or (kind or "").startswith(("image/", "video/"))


def check_output(inputs: list[tuple[Path, Path]], output: Path) -> None:
    """Refuses, before the model is loaded, what could not be written after it."""
    if names_a_file(output):
        if len(inputs) > 1:
            raise ValueError(f"--output {output} is a file, but there are {len(inputs)} inputs")
        source = inputs[0][0]
        kind = "a video" if is_video(source) else "an image"
        suffixes = WRITABLE_VIDEO_SUFFIXES if is_video(source) else IMAGE_SUFFIXES
        if output.suffix.lower() not in suffixes:
            raise ValueError(
                f"--output of {kind} must end in one of {', '.join(sorted(suffixes))} "
                f"or be a folder, got {output}"
            )
    folder = output.parent if names_a_file(output) else output
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"--output {output} must be a folder, but {existing} is a file")


class Planned(NamedTuple):
    """An input, its path below the folder that was asked for, and its files."""

    source: Path
    name: Path
    files: InputFiles


def _unused(path: Path, taken: set[Path]) -> Path:
    """The path, or the first one with a number that no other input has."""
    number, unused = 2, path
    while unused in taken:
        unused = path.with_stem(f"{path.stem}_{number}")
        number += 1
    taken.add(unused)
    return unused


def _files_of(
    source: Path, name: Path, folder: Path, args: argparse.Namespace, taken: set[Path]
) -> InputFiles:
    drawn = name.with_suffix(".mp4" if is_video(source) else picture_suffix(name))
    mapped = name.with_suffix("" if is_video(source) else ".png")
    whole = name.with_name(f"{name.name}.json")
    return InputFiles(
        picture=_unused(folder / drawn, taken) if args.pictures else None,
        json=_unused(folder / JSON / whole, taken) if args.json else None,
        crops=_unused(folder / CROPS / name, taken) if args.crops else None,
        maps=_unused(folder / MAPS / mapped, taken) if args.maps else None,
    )


def plan_outputs(inputs: list[tuple[Path, Path]], args: argparse.Namespace) -> list[Planned]:
    """Gives each input files of its own to write, never one of the inputs."""
    sources = {path.resolve() for path, _ in inputs}
    folder = Path(args.output)
    check_output(inputs, folder)
    only_pictures = args.pictures and not (args.json or args.crops or args.maps)
    if names_a_file(folder):
        if not only_pictures or args.skip_existing:
            raise ValueError(
                f"--output {folder} is a file, which holds a drawn image or video alone: give a "
                "folder for --json, --crops, --maps, --no-pictures and --skip-existing"
            )
        planned = [Planned(inputs[0][0], inputs[0][1], InputFiles(picture=folder))]
    else:
        taken: set[Path] = set()
        planned = [
            Planned(path, name, _files_of(path, name, folder, args, taken)) for path, name in inputs
        ]
    for source, _, files in planned:
        if not files.paths():
            raise ValueError("--no-pictures needs --json, --crops or --maps: nothing is written")
        if any(path.resolve() in sources for path in files.paths()):
            raise ValueError(f"--output {folder} would overwrite the input {source}")
    return planned
