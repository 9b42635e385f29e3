#!/usr/bin/env python
"""Draws the predictions of any LazyConfig on images, folders of images and videos.

Exits with 0 if every input was drawn, with 1 if there was no input or one failed (each failure is
reported, and the other inputs are still drawn), and with 2 for invalid arguments.
"""

import argparse
import glob
import mimetypes
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.utils.visualizer import ColorMode, Visualizer
from tqdm import tqdm

from vitadapter.data.image_files import IMAGE_SUFFIXES, is_image_name, read_image
from vitadapter.engine.launch import check_alone
from vitadapter.engine.overrides import load_config
from vitadapter.engine.predictor import LazyPredictor

WRITABLE_VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4"}  # with the codec below
VIDEO_SUFFIXES = {*WRITABLE_VIDEO_SUFFIXES, ".mpeg", ".mpg", ".webm"}
CODEC = "mp4v"
DEFAULT_FPS = 25.0


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a LazyConfig")
    parser.add_argument(
        "--input", required=True, nargs="+", help="images, folders, videos or quoted patterns"
    )
    parser.add_argument(
        "--output", required=True, help="folder, or for a single input the file, to write to"
    )
    parser.add_argument("--weights", help="checkpoint; default: the config's train.init_checkpoint")
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.5,
        help="draw predictions with at least this score, in [0, 1]",
    )
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="key=value; must come last")
    args = parser.parse_args(arguments)
    if not Path(args.config_file).is_file():
        parser.error(f"--config-file {args.config_file} does not exist or is a folder")
    if not 0 <= args.score_threshold <= 1:
        parser.error(f"--score-threshold must be in [0, 1], got {args.score_threshold}")
    return args


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def is_input(path: Path) -> bool:
    return is_image_name(path.name) or (is_video(path) and not path.name.startswith("._"))


def find_inputs(patterns: Sequence[str], output: str) -> list[tuple[Path, Path]]:
    """Every input, with its path relative to the folder that was given."""
    found = []
    written = Path(output).resolve()
    for pattern in patterns:
        path = Path(pattern)
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
    """Refuses an output that could not be written, before the model is loaded."""
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


def plan_outputs(inputs: list[tuple[Path, Path]], output: str) -> list[tuple[Path, Path]]:
    """Pairs each input with a different file to write, which is never one of the inputs."""
    sources = {path.resolve() for path, _ in inputs}
    folder = Path(output)
    check_output(inputs, folder)
    is_file = names_a_file(folder)
    planned = [(inputs[0][0], folder)] if is_file else []
    taken: set[Path] = set()
    for path, relative in inputs if not is_file else ():
        target = folder / relative
        target = target.with_suffix(".mp4") if is_video(path) else target
        number = 2
        while target in taken:
            target = target.with_stem(f"{relative.stem}_{number}")
            number += 1
        taken.add(target)
        planned.append((path, target))
    for path, target in planned:
        if target.resolve() in sources:
            raise ValueError(f"--output {output} would overwrite the input {path}")
    return planned


def draw(predictor: LazyPredictor, image: np.ndarray, threshold: float) -> np.ndarray:
    """The BGR `image` (H, W, 3) with its predictions, in the same size and order."""
    output = predictor(image)
    visualizer = Visualizer(image[:, :, ::-1], predictor.metadata, instance_mode=ColorMode.IMAGE)
    if "panoptic_seg" in output:
        ids, segments = output["panoptic_seg"]
        drawn = visualizer.draw_panoptic_seg(ids.to("cpu"), segments, alpha=0.6)
    elif "instances" in output:
        instances = output["instances"].to("cpu")
        drawn = visualizer.draw_instance_predictions(instances[instances.scores >= threshold])
    else:
        drawn = visualizer.draw_sem_seg(output["sem_seg"].argmax(dim=0).to("cpu"), alpha=0.6)
    return np.ascontiguousarray(drawn.get_image()[:, :, ::-1])


def draw_image(predictor: LazyPredictor, source: Path, target: Path, threshold: float) -> None:
    image = np.ascontiguousarray(read_image(str(source), "BGR"))
    if not cv2.imwrite(str(target), draw(predictor, image, threshold)):
        raise OSError(f"{target} cannot be written")


def read_frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        success, frame = capture.read()
        if not success:
            return
        yield frame


def draw_video(predictor: LazyPredictor, source: Path, target: Path, threshold: float) -> None:
    if not source.is_file():  # reading a pipe might never end
        raise OSError("it is no file")
    capture = cv2.VideoCapture(str(source))
    writer = None
    fps = capture.get(cv2.CAP_PROP_FPS) or DEFAULT_FPS
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    try:
        for frame in tqdm(read_frames(capture), total=max(total, 0) or None, desc=source.name):
            drawn = draw(predictor, frame, threshold)
            if writer is None:
                size = (drawn.shape[1], drawn.shape[0])
                codec = cv2.VideoWriter_fourcc(*CODEC)
                writer = cv2.VideoWriter(str(target), codec, fps, size)
                if not writer.isOpened():
                    raise OSError(f"{target} cannot be written as video")
            writer.write(drawn)
    finally:
        capture.release()
        if writer is not None:
            writer.release()
    if writer is None:
        raise OSError("no frame can be read")


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    inputs = find_inputs(args.input, args.output)
    if not inputs:
        print(f"no image or video found in {', '.join(args.input)}")
        return 1
    try:
        check_alone()
        planned = plan_outputs(inputs, args.output)
        cfg = load_config(args.config_file, args.overrides)
        predictor = LazyPredictor(cfg, args.weights)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = 0
    for source, target in tqdm(planned, desc="inputs", disable=len(planned) == 1):
        draw_input = draw_video if is_video(source) else draw_image
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            draw_input(predictor, source, target, args.score_threshold)
        except (OSError, ValueError, cv2.error) as error:
            failed += 1
            tqdm.write(f"failed: {source}: {error}")
    print(f"{len(planned) - failed} of {len(planned)} inputs drawn, written to {args.output}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
