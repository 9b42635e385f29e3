"""`vitadapter predict`: the predictions of a model on images, folders of images and videos.

Exits with 0 if every input was predicted, with 1 if there was no input or one failed (each failure
is reported, and the other inputs are still predicted), and with 2 for invalid arguments.
"""

import argparse
import glob
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import islice
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
from vitadapter.commands.prediction_ranks import Progress, Ranks
from vitadapter.commands.predictors import Model, Predictor, find_model
from vitadapter.data.image_files import read_image
from vitadapter.engine.prediction_files import (
    FoundWriter,
    InputFiles,
    UnsupportedFilesError,
    dataset_ids,
    merge_json,
    started,
)
from vitadapter.engine.prediction_stream import read_ahead, same_size_batches
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
_FAILURES = (OSError, ValueError, cv2.error)  # of one input, after which the others are predicted

INPUTS = "images, folders, videos, quoted patterns, or .txt files with one of these per line"
OUTPUT = "folder, or for a single input the file, to write to"
_EXAMPLES = """
examples:
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_3x photo.jpg      # the published weights
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_3x photos/ video.mp4 --output drawn/
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_3x photos/ --classes person car --json --crops
  %(prog)s COCO/mask_rcnn_vit_adapter_s_deit_3x aerial.tif --tile 800    # a large image
  %(prog)s detector.onnx photo.jpg                 # a file of `vitadapter export`
  %(prog)s output/model_final.pth photo.jpg        # a checkpoint carries its config
  %(prog)s output/model_final.pth all.txt --json --no-pictures --batch-size 8 --workers 4
  %(prog)s config.py photo.jpg --weights model_final.pth --overrides train.device=cpu
"""


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    if args.score_threshold is not None and not 0 <= args.score_threshold <= 1:
        parser.error(f"--score-threshold must be in [0, 1], got {args.score_threshold}")
    if args.tile is None and args.tile_overlap is not None:
        parser.error(f"--tile-overlap {args.tile_overlap} needs --tile, the side of a tile")
    if args.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.workers < 0:
        parser.error(f"--workers must not be negative, got {args.workers}")
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
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="predict so many images of the same size, or frames, at once (default: 1)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        metavar="N",
        help="threads that read images while others are predicted (default: 2)",
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


def _chunks(frames: Iterable[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    remaining = iter(frames)
    while chunk := list(islice(remaining, size)):
        yield chunk


def _failure(planned: Planned, error: Exception) -> int:
    """Reports an input that failed, and counts it."""
    tqdm.write(f"failed: {planned.source}: {error}")
    return 1


@dataclass(frozen=True)
class Run:
    """Predicts inputs and writes their files.

    Args:
        predictor: of images.
        selection: what is wanted of its predictions.
        folder: that all files are in.
        batch_size: number of images or frames that are predicted at once.
        workers: number of threads that read images.
    """

    predictor: Predictor
    selection: Selection
    folder: Path
    batch_size: int
    workers: int

    @property
    def palette(self) -> Palette:
        """Of the model's classes."""
        return Palette(class_names(self.predictor.metadata))

    def _read(self, planned: Planned) -> np.ndarray:
        image = read_image(str(planned.source), self.predictor.array_format)
        return np.ascontiguousarray(image)

    def _find(self, images: Sequence[np.ndarray]) -> list[Found]:
        return [self.selection(found) for found in self.predictor.predict(images)]

    def _writing(
        self, planned: Planned, fps: float | None = None
    ) -> AbstractContextManager[FoundWriter]:
        ids = dataset_ids(self.predictor.metadata)
        return FoundWriter.open(planned.files, self.folder, planned.name, self.palette, ids, fps)

    def _write_image(self, planned: Planned, image: np.ndarray, found: Found) -> None:
        if isinstance(self.predictor.array_format, int):
            image = shown_image(torch.from_numpy(image).permute(2, 0, 1), "RGB")[:, :, ::-1]
        with self._writing(planned) as writer:
            writer.add(image, found)
        tqdm.write(f"{planned.source}: {in_words(found, self.palette)}")

    def _batch(self, batch: Sequence[tuple[Planned, np.ndarray]]) -> int:
        """Predicts images and returns how many failed; if the batch fails, one by one."""
        try:
            all_found = self._find([image for _, image in batch])
        except _FAILURES as error:
            if len(batch) == 1:
                return _failure(batch[0][0], error)
            return sum(self._batch([one]) for one in batch)
        failed = 0
        for (planned, image), found in zip(batch, all_found, strict=True):
            try:
                self._write_image(planned, image, found)
            except UnsupportedFilesError:
                raise
            except _FAILURES as error:
                failed += _failure(planned, error)
        return failed

    def images(self, planned: Sequence[Planned], progress: Progress) -> int:
        """Predicts images, and returns how many failed."""
        failed = 0

        def readable() -> Iterator[tuple[Planned, np.ndarray]]:
            nonlocal failed
            for one, image in read_ahead(planned, self._read, self.workers):
                if isinstance(image, Exception):
                    failed += _failure(one, image)
                    progress.update(1)
                else:
                    yield one, image

        for batch in same_size_batches(readable(), self.batch_size):
            failed += self._batch(batch)
            progress.update(len(batch))
        return failed

    def video(self, planned: Planned, progress: Progress) -> None:
        """Predicts the frames of a video."""
        if not planned.source.is_file():  # a pipe would be waited for without end
            raise OSError("it is no file")
        capture = cv2.VideoCapture(str(planned.source))
        fps = capture.get(cv2.CAP_PROP_FPS) or DEFAULT_FPS
        total = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0) or None
        frames = tqdm(
            read_frames(capture),
            total=total,
            desc=planned.source.name,
            unit="frame",
            disable=not progress.is_shown,
        )
        is_empty = True
        try:
            with self._writing(planned, fps) as writer:
                for several in _chunks(frames, self.batch_size):
                    for frame, found in zip(several, self._find(several), strict=True):
                        writer.add(frame, found)
                    is_empty = False
                    progress.update()
                if is_empty:
                    raise OSError("no frame can be read")
        finally:
            capture.release()

    def all(self, planned: Sequence[Planned], progress: Progress) -> int:
        """Predicts all inputs, and returns how many failed, each of which is reported."""
        failed = self.images([one for one in planned if not is_video(one.source)], progress)
        for one in planned:
            if is_video(one.source):
                try:
                    self.video(one, progress)
                except UnsupportedFilesError:
                    raise
                except _FAILURES as error:
                    failed += _failure(one, error)
        return failed


def prepare(args: argparse.Namespace) -> tuple[Model, Selection, dict[str, object]]:
    """The model, what is wanted of it, and the settings that its predictions depend on.

    Args:
        args: as of `run`.

    Raises:
        ValueError: there is no such model or class, or it does not predict what is asked for.
        FileNotFoundError: there is no such exported file.
    """
    model = find_model(args.config_file, args.weights, args.overrides, args.tiles)
    _check_answer(args, model.answer())
    threshold, classes = args.score_threshold, None
    if threshold is None:
        threshold = Selection.score_threshold
    if args.classes:  # before published weights are downloaded
        classes = chosen_classes(args.classes, class_names(model.metadata()))
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
    return model, Selection(threshold, classes), settings


def _left(planned: list[Planned], since: float) -> list[Planned]:
    """Those inputs whose files are missing, or older than they are or than a time in seconds."""
    return [
        one
        for one in planned
        if not one.source.is_file()
        or not one.files.are_newer(max(since, one.source.stat().st_mtime))
    ]


def begin(
    args: argparse.Namespace, planned: list[Planned], settings: dict[str, object]
) -> tuple[float, list[Planned]]:
    """Begins to write to a folder, or goes on.

    Args:
        args: as of `run`.
        planned: all inputs.
        settings: of `prepare`.

    Returns:
        The time in seconds since when files are of these settings, and the inputs that are left.

    Raises:
        ValueError: the folder holds predictions of other settings, which are to be kept.
    """
    since = started(Path(args.output), settings, go_on=args.skip_existing)
    return since, _left(planned, since) if args.skip_existing else planned


def finish(args: argparse.Namespace, planned: list[Planned], since: float) -> None:
    """Writes `predictions.json` if it is asked for.

    Args:
        args: as of `run`.
        planned: all inputs.
        since: of `begin`.
    """
    if args.json:
        files = [InputFiles(json=one.files.json) for one in planned]
        merge_json((f.json for f in files if f.are_newer(since)), Path(args.output))


def number_of_images(planned: Sequence[Planned]) -> int:
    """How many of the inputs are images."""
    return sum(not is_video(one.source) for one in planned)


def _with_ranks(
    args: argparse.Namespace, planned: list[Planned], ranks: Ranks
) -> tuple[int, int] | None:
    with setup_errors():
        model, selection, settings = prepare(args)
        predictor = model.predictor()
    output = Path(args.output)
    is_file = names_a_file(output)
    folder = output.parent if is_file else output
    run = Run(predictor, selection, folder, args.batch_size, args.workers)
    since, todo = 0.0, planned
    if not is_file:
        since, todo = ranks.decided(lambda: begin(args, planned, settings))
    with ranks.progress(number_of_images(todo)) as progress:
        failed = ranks.total(run.all(ranks.part(todo), progress))
        progress.update()
    if not ranks.is_first:
        return None
    if not is_file:
        finish(args, planned, since)
    return len(todo), failed


def predict_in_processes(
    args: argparse.Namespace, planned: list[Planned]
) -> tuple[int, int] | None:
    """Predicts in this process, or in those that torchrun has started.

    Args:
        args: as of `run`.
        planned: all inputs.

    Returns:
        How many inputs there were to predict, and how many of them failed; None in other processes
        than the first.

    Raises:
        ValueError, OSError: nothing can be predicted.
    """
    ranks = Ranks.join()
    try:
        return _with_ranks(args, planned, ranks)
    finally:
        ranks.leave()


def run(
    args: argparse.Namespace,
    predict_all: Callable[
        [argparse.Namespace, list[Planned]], tuple[int, int] | None
    ] = predict_in_processes,
) -> int:
    """Predicts.

    Args:
        args: with `config_file`, `inputs`, `output`, `weights`, `overrides` what `_add_options`
            adds and `tiles`.
        predict_all: see `predict_in_processes`.

    Returns:
        The exit status, see the top of this file.
    """
    try:
        inputs = find_inputs(args.inputs, args.output)
        if not any(path.exists() for path, _ in inputs):  # before weights are downloaded
            print(f"no image or video found in {', '.join(args.inputs)}")
            return 1
        planned = plan_outputs(inputs, args)
        counts = predict_all(args, planned)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if counts is None:
        return 0  # torchrun would end the others for another status; the first one has it
    todo, failed = counts
    skipped = f" ({len(planned) - todo} were there)" if args.skip_existing else ""
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


def predict_parser(prog: str, description: str, examples: str) -> argparse.ArgumentParser:
    """A parser of the options of `vitadapter predict`.

    Args:
        prog, description, examples: see `command_parser`.
    """
    parser = command_parser(prog, description, examples)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help=INPUTS)
    parser.add_argument("--output", default="predictions", help=f"{OUTPUT} (default: predictions)")
    parser.add_argument("--weights", default="zoo", help=f"{WEIGHTS_OR_EXPORTED} (default: zoo)")
    _add_options(parser)
    parser.add_argument("--overrides", nargs="+", default=[], metavar="key=value", help=OVERRIDES)
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Reads and checks arguments.

    Args:
        parser: of `predict_parser`.
        arguments: of the command line.

    Returns:
        What `run` takes.
    """
    args = _check(parser, parser.parse_args(arguments))
    for text in args.inputs:
        if "=" in text and not glob.has_magic(text) and not Path(text).exists():
            parser.error(f"the input {text} does not exist; overrides come after --overrides")
    return args


def predict(arguments: Sequence[str], prog: str = "vitadapter predict") -> int:
    """Predicts.

    Args:
        arguments: of the command line.
        prog: name of the command in messages.

    Returns:
        The exit status, see the top of this file.
    """
    return run(parse(predict_parser(prog, __doc__.partition("\n\n")[2], _EXAMPLES), arguments))
