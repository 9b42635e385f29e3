"""`vitadapter predict`: the predictions of a model on images, folders of images and videos.

Exits with 0 if every input was drawn, with 1 if there was no input or one failed (each failure is
reported, and the other inputs are still drawn), and with 2 for invalid arguments.
"""

import argparse
import glob
import mimetypes
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer
from tqdm import tqdm

from vitadapter.commands.arguments import (
    CONFIG,
    OVERRIDES,
    WEIGHTS,
    command_parser,
    weights_of,
)
from vitadapter.data.image_files import IMAGE_SUFFIXES, is_image_name, read_image
from vitadapter.engine.launch import check_alone
from vitadapter.engine.overrides import load_config
from vitadapter.engine.predictor import LazyPredictor
from vitadapter.export import ExportedPredictor
from vitadapter.export.runtimes import FORMATS
from vitadapter.model_zoo import config_file

Predictor: TypeAlias = LazyPredictor | ExportedPredictor

WRITABLE_VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4"}  # with the codec below
VIDEO_SUFFIXES = {*WRITABLE_VIDEO_SUFFIXES, ".mpeg", ".mpg", ".webm"}
CODEC = "mp4v"
DEFAULT_FPS = 25.0

INPUTS = "images, folders, videos or quoted patterns"
OUTPUT = "folder, or for a single input the file, to write to"
_EXAMPLES = """
examples:
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_3x photo.jpg      # the published weights
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_3x photos/ video.mp4 --output drawn/
  %(prog)s detector.onnx photo.jpg                 # a file of `vitadapter export`
  %(prog)s output/config.yaml photo.jpg --weights output/model_final.pth \\
      --overrides train.device=cpu
"""


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    if not 0 <= args.score_threshold <= 1:
        parser.error(f"--score-threshold must be in [0, 1], got {args.score_threshold}")
    return args


def _add_threshold(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.5,
        help="show predictions with at least this score, in [0, 1] (default: 0.5)",
    )


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def is_input(path: Path) -> bool:
    return is_image_name(path.name) or (is_video(path) and not path.name.startswith("._"))


def find_inputs(patterns: Sequence[str], output: str) -> list[tuple[Path, Path]]:
    """Every input with its path relative to the folder that was asked for."""
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


def plan_outputs(inputs: list[tuple[Path, Path]], output: str) -> list[tuple[Path, Path]]:
    """Pairs each input with a file of its own to write, never one of the inputs."""
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


def draw(predictor: Predictor, image: np.ndarray, threshold: float) -> tuple[np.ndarray, str]:
    """The BGR `image` (H, W, 3) with its predictions, in the same size and order; and in words."""
    output = predictor(image)
    metadata = predictor.metadata
    visualizer = Visualizer(image[:, :, ::-1], metadata, instance_mode=ColorMode.IMAGE)
    if "panoptic_seg" in output:
        ids, segments = output["panoptic_seg"]
        drawn = visualizer.draw_panoptic_seg(ids.to("cpu"), segments, alpha=0.6)
        words = f"{len(segments)} segments"
    elif "instances" in output:
        instances = output["instances"].to("cpu")
        instances = instances[instances.scores >= threshold]
        drawn = visualizer.draw_instance_predictions(instances)
        words = _instances_in_words(instances, metadata.get("thing_classes"))
    else:
        classes = output["sem_seg"].argmax(dim=0).to("cpu")
        drawn = visualizer.draw_sem_seg(classes, alpha=0.6)
        words = f"{len(classes.unique())} classes"
    return np.ascontiguousarray(drawn.get_image()[:, :, ::-1]), words


def _instances_in_words(instances: Instances, names: Sequence[str] | None) -> str:
    """Such as "person 0.98 0.91, dog 0.88": the scores of each class, the best one first."""
    scores: dict[int, list[str]] = {}
    for index in instances.scores.argsort(descending=True).tolist():
        kind = int(instances.pred_classes[index])
        scores.setdefault(kind, []).append(f"{float(instances.scores[index]):.2f}")
    found = [
        f"{names[kind] if names else f'class {kind}'} {' '.join(listed)}"
        for kind, listed in scores.items()
    ]
    return ", ".join(found) or "nothing"


def draw_image(predictor: Predictor, source: Path, target: Path, threshold: float) -> None:
    image = np.ascontiguousarray(read_image(str(source), "BGR"))
    drawn, words = draw(predictor, image, threshold)
    if not cv2.imwrite(str(target), drawn):
        raise OSError(f"{target} cannot be written")
    tqdm.write(f"{source}: {words}")


def read_frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        success, frame = capture.read()
        if not success:
            return
        yield frame


def draw_video(predictor: Predictor, source: Path, target: Path, threshold: float) -> None:
    if not source.is_file():  # a pipe would be waited for without end
        raise OSError("it is no file")
    capture = cv2.VideoCapture(str(source))
    writer = None
    fps = capture.get(cv2.CAP_PROP_FPS) or DEFAULT_FPS
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    try:
        for frame in tqdm(read_frames(capture), total=max(total, 0) or None, desc=source.name):
            drawn, _ = draw(predictor, frame, threshold)
            if writer is None:
                size = (drawn.shape[1], drawn.shape[0])
                codec = cv2.VideoWriter.fourcc(*CODEC)
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


def _predictor(args: argparse.Namespace) -> Predictor:
    """Opens an exported file, or builds a config with its weights."""
    if Path(args.config_file).suffix in {each.suffix for each in FORMATS.values()}:
        if args.overrides or args.weights not in (None, "zoo"):
            raise ValueError(
                f"{args.config_file} holds its weights and settings: leave out --weights and "
                "overrides"
            )
        return ExportedPredictor(args.config_file)
    cfg = load_config(str(config_file(args.config_file)), args.overrides)
    weights = None if args.weights is None else weights_of(args.config_file, args.weights)
    return LazyPredictor(cfg, weights)


def run(args: argparse.Namespace) -> int:
    """Predicts.

    Args:
        args: with `config_file`, `inputs`, `output`, `weights`, `score_threshold` and `overrides`.

    Returns:
        The exit status, see the top of this file.
    """
    inputs = find_inputs(args.inputs, args.output)
    if not any(path.exists() for path, _ in inputs):  # before weights are downloaded
        print(f"no image or video found in {', '.join(args.inputs)}")
        return 1
    try:
        check_alone()
        planned = plan_outputs(inputs, args.output)
        predictor = _predictor(args)
    except (FileNotFoundError, ValueError) as error:
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


def script(arguments: Sequence[str] | None = None) -> int:
    """Predicts with the options of `scripts/demo.py`.

    Args:
        arguments: of the command line; None for those of the process.

    Returns:
        The exit status, see the top of this file.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help=CONFIG)
    parser.add_argument(
        "--input", dest="inputs", required=True, nargs="+", help=INPUTS, metavar="INPUT"
    )
    parser.add_argument("--output", required=True, help=OUTPUT)
    parser.add_argument("--weights", help=f"{WEIGHTS}; default: the config's train.init_checkpoint")
    _add_threshold(parser)
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="key=value; must come last")
    return run(_check(parser, parser.parse_args(arguments)))


def predict(arguments: Sequence[str], prog: str = "vitadapter predict") -> int:
    """Predicts.

    Args:
        arguments: of the command line.
        prog: name of the command in messages.

    Returns:
        The exit status, see the top of this file.
    """
    parser = command_parser(prog, __doc__.partition("\n\n")[2], _EXAMPLES)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help=INPUTS)
    parser.add_argument("--output", default="predictions", help=f"{OUTPUT} (default: predictions)")
    parser.add_argument("--weights", default="zoo", help=f"{WEIGHTS} (default: zoo)")
    _add_threshold(parser)
    parser.add_argument("--overrides", nargs="+", default=[], metavar="key=value", help=OVERRIDES)
    args = _check(parser, parser.parse_args(arguments))
    for text in args.inputs:
        if "=" in text and not glob.has_magic(text) and not Path(text).exists():
            parser.error(f"the input {text} does not exist; overrides come after --overrides")
    return run(args)
