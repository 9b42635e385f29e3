"""`vitadapter predict`: the predictions of a model on images, folders of images and videos.

Exits with 0 if every input was predicted, with 1 if there was no input or one failed (each failure
is reported, and the other inputs are still predicted), and with 2 for invalid arguments.
"""

import argparse
import glob
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from vitadapter.commands.arguments import CONFIG, OVERRIDES, WEIGHTS_OR_EXPORTED, command_parser
from vitadapter.commands.prediction_inputs import (
    Planned,
    find_inputs,
    is_video,
    names_a_file,
    plan_outputs,
)
from vitadapter.commands.predictors import Predictor, find_model
from vitadapter.data.image_files import read_image
from vitadapter.engine.launch import check_alone
from vitadapter.engine.prediction_files import (
    FoundWriter,
    InputFiles,
    UnsupportedFilesError,
    dataset_ids,
    merge_json,
    started,
)
from vitadapter.engine.run_checks import setup_errors
from vitadapter.modeling.inference import Tiles
from vitadapter.visualization.overlays import Palette
from vitadapter.visualization.predictions import (
    Found,
    Selection,
    chosen_classes,
    class_names,
    in_words,
)
from vitadapter.visualization.sample_sheets import shown_image

DEFAULT_FPS = 25.0

INPUTS = "images, folders, videos or quoted patterns"
OUTPUT = "folder, or for a single input the file, to write to"
_EXAMPLES = """
examples:
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_3x photo.jpg      # the published weights
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_3x photos/ video.mp4 --output drawn/
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_3x photos/ --classes person car --json --crops
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_3x aerial.tif --tile 800    # a large image
  %(prog)s detector.onnx photo.jpg                 # a file of `vitadapter export`
  %(prog)s output/model_final.pth photo.jpg        # a checkpoint carries its config
  %(prog)s config.py photo.jpg --weights model_final.pth --overrides train.device=cpu
"""


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    if args.score_threshold is not None and not 0 <= args.score_threshold <= 1:
        parser.error(f"--score-threshold must be in [0, 1], got {args.score_threshold}")
    if args.tile is None and args.tile_overlap is not None:
        parser.error(f"--tile-overlap {args.tile_overlap} needs --tile, the side of a tile")
    try:
        args.tiles = _tiles(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def _tiles(args: argparse.Namespace) -> Tiles | None:
    if args.tile is None:
        return None
    if args.tile_overlap is None:
        return Tiles(args.tile)
    return Tiles(args.tile, args.tile_overlap)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--score-threshold",
        type=float,
        help="take objects with at least this score, in [0, 1] "
        f"(default: {Selection.score_threshold})",
    )
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME", help="take predictions of these classes alone"
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="predict large images in tiles with sides of so many pixels",
    )
    parser.add_argument(
        "--tile-overlap",
        type=float,
        metavar="FRACTION",
        help=f"overlap of tiles, in [0, 1) of their side (default: {Tiles.overlap})",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="write predictions.json, in COCO's format of results with file names",
    )
    parser.add_argument("--crops", action="store_true", help="write each object as an image")
    parser.add_argument(
        "--maps", action="store_true", help="write label PNGs or COCO's panoptic PNGs"
    )
    parser.add_argument("--no-pictures", dest="pictures", action="store_false", help="draw nothing")
    parser.add_argument(
        "--skip-existing",
        action="store_true",
        help="go on with a stopped run: leave out inputs whose files are there",
    )


def _check_answer(args: argparse.Namespace, answer: str | None) -> None:
    """Refuses options that a model of another task is needed for, before anything is written.

    Args:
        args: of the command line.
        answer: of `Model`.

    Raises:
        ValueError: names the option.
    """
    finds = f"this model answers with {answer}"
    if args.maps and answer == "instances":
        raise ValueError(f"--maps needs a semantic or panoptic model, but {finds}")
    if args.crops and answer == "sem_seg":
        raise ValueError(f"--crops needs a model that finds objects, but {finds}")
    if args.score_threshold is not None and answer in ("sem_seg", "panoptic_seg"):
        raise ValueError(
            f"--score-threshold {args.score_threshold} needs a model that finds scored objects, "
            f"but {finds}: leave it out"
        )


def read_frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        success, frame = capture.read()
        if not success:
            return
        yield frame


@dataclass(frozen=True)
class Run:
    """Predicts inputs and writes their files.

    Args:
        predictor: of images.
        selection: what is wanted of its predictions.
        folder: that all files are in.
    """

    predictor: Predictor
    selection: Selection
    folder: Path

    @property
    def palette(self) -> Palette:
        """Of the model's classes."""
        return Palette(class_names(self.predictor.metadata))

    def _find(self, image: np.ndarray) -> Found:
        return self.selection(self.predictor(image))

    def _writing(
        self, planned: Planned, fps: float | None = None
    ) -> AbstractContextManager[FoundWriter]:
        ids = dataset_ids(self.predictor.metadata)
        return FoundWriter.open(planned.files, self.folder, planned.name, self.palette, ids, fps)

    def image(self, planned: Planned) -> None:
        """Predicts an image."""
        array_format = self.predictor.array_format
        image = np.ascontiguousarray(read_image(str(planned.source), array_format))
        found = self._find(image)
        if isinstance(array_format, int):
            image = shown_image(torch.from_numpy(image).permute(2, 0, 1), "RGB")[:, :, ::-1]
        with self._writing(planned) as writer:
            writer.add(image, found)
        tqdm.write(f"{planned.source}: {in_words(found, self.palette)}")

    def video(self, planned: Planned) -> None:
        """Predicts the frames of a video."""
        if not planned.source.is_file():  # a pipe would be waited for without end
            raise OSError("it is no file")
        capture = cv2.VideoCapture(str(planned.source))
        fps = capture.get(cv2.CAP_PROP_FPS) or DEFAULT_FPS
        total = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0) or None
        frames = tqdm(read_frames(capture), total=total, desc=planned.source.name)
        is_empty = True
        try:
            with self._writing(planned, fps) as writer:
                for frame in frames:
                    writer.add(frame, self._find(frame))
                    is_empty = False
                if is_empty:
                    raise OSError("no frame can be read")
        finally:
            capture.release()

    def all(self, planned: Sequence[Planned]) -> int:
        """Predicts all inputs, and returns how many failed, each of which is reported."""
        failed = 0
        for one in tqdm(planned, desc="inputs", disable=len(planned) == 1):
            try:
                (self.video if is_video(one.source) else self.image)(one)
            except UnsupportedFilesError:
                raise
            except (OSError, ValueError, cv2.error) as error:
                failed += 1
                tqdm.write(f"failed: {one.source}: {error}")
        return failed


def _prepared(args: argparse.Namespace) -> tuple[Predictor, Selection, dict[str, object]]:
    """The predictor, what is wanted of it, and the settings that its predictions depend on."""
    model = find_model(args.config_file, args.weights, args.overrides, args.tiles)
    _check_answer(args, model.answer())
    threshold, classes = args.score_threshold, None
    if threshold is None:
        threshold = Selection.score_threshold
    if args.classes:  # before published weights are downloaded
        classes = chosen_classes(args.classes, class_names(model.metadata()))
    predictor = model.predictor()
    weights = Path(model.weights)
    settings: dict[str, object] = {
        "config": model.config,
        "weights": model.weights,
        "weights_changed": weights.stat().st_mtime if weights.is_file() else None,
        "overrides": list(args.overrides),
        "score_threshold": threshold,
        "tiles": None if args.tiles is None else asdict(args.tiles),
        "classes": None if args.classes is None else sorted(set(args.classes)),
    }
    return predictor, Selection(threshold, classes), settings


def _left(planned: list[Planned], since: float) -> list[Planned]:
    """Those inputs whose files are missing, or older than they are or than a time in seconds."""
    return [
        one
        for one in planned
        if not one.source.is_file()
        or not one.files.are_newer(max(since, one.source.stat().st_mtime))
    ]


def run(args: argparse.Namespace) -> int:
    """Predicts.

    Args:
        args: with `config_file`, `inputs`, `output`, `weights`, `overrides` what `_add_options`
            adds and `tiles`.

    Returns:
        The exit status, see the top of this file.
    """
    inputs = find_inputs(args.inputs, args.output)
    if not any(path.exists() for path, _ in inputs):  # before weights are downloaded
        print(f"no image or video found in {', '.join(args.inputs)}")
        return 1
    try:
        check_alone()
        planned = plan_outputs(inputs, args)
        with setup_errors():
            predictor, selection, settings = _prepared(args)
        output, todo = Path(args.output), planned
        if names_a_file(output):
            failed = Run(predictor, selection, output.parent).all(planned)
        else:
            since = started(output, settings, go_on=args.skip_existing)
            todo = _left(planned, since) if args.skip_existing else planned
            failed = Run(predictor, selection, output).all(todo)
            if args.json:
                files = [InputFiles(json=one.files.json) for one in planned]
                merge_json((f.json for f in files if f.are_newer(since)), output)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    skipped = f" ({len(planned) - len(todo)} were there)" if args.skip_existing else ""
    done = f"{len(planned) - failed} of {len(planned)} inputs done{skipped}"
    print(f"{done}, written to {args.output}")
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
    parser.add_argument(
        "--weights", help=f"{WEIGHTS_OR_EXPORTED}; default: the config's train.init_checkpoint"
    )
    _add_options(parser)
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
    parser.add_argument("--weights", default="zoo", help=f"{WEIGHTS_OR_EXPORTED} (default: zoo)")
    _add_options(parser)
    parser.add_argument("--overrides", nargs="+", default=[], metavar="key=value", help=OVERRIDES)
    args = _check(parser, parser.parse_args(arguments))
    for text in args.inputs:
        if "=" in text and not glob.has_magic(text) and not Path(text).exists():
            parser.error(f"the input {text} does not exist; overrides come after --overrides")
    return run(args)
