"""The files of predictions: pictures, videos, json, crops and maps, each written whole or not."""

import json
import math
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.data.catalog import Metadata
from PIL import Image

from vitadapter.data.coco.results import to_results
from vitadapter.data.panoptic.maps import id_to_rgb
from vitadapter.visualization.overlays import Palette
from vitadapter.visualization.predictions import EVERYTHING, NOTHING, Found, Shown, draw_found

__all__ = [
    "FoundWriter",
    "InputFiles",
    "UnsupportedFilesError",
    "dataset_ids",
    "merge_json",
    "picture_suffix",
    "started",
]

PREDICTIONS = "predictions.json"
"""The predictions of all inputs."""

SETTINGS = "predict.json"
"""What the predictions in a folder were made with."""

CROPS, JSON, MAPS = "crops", "json", "maps"
"""Folders of the kinds of files."""

_CODEC = "mp4v"
_UNFINISHED = ".vitadapter-"
_MAX_LABELS = 255  # classes of an 8-bit label map, whose value 255 is for pixels without one

Entry = dict[str, object]


class UnsupportedFilesError(ValueError):
    """The model does not predict what is to be written."""


@dataclass(frozen=True)
class InputFiles:
    """Where the predictions of an image or a video go; None for what is not asked for.

    Args:
        picture: the drawn image or video.
        json: file with the predictions.
        crops: folder of the objects.
        maps: map of labels or panoptic segments, or of a video the folder of its frames' maps.
    """

    picture: Path | None = None
    json: Path | None = None
    crops: Path | None = None
    maps: Path | None = None

    def paths(self) -> list[Path]:
        """All that is asked for."""
        return [path for path in astuple(self) if path is not None]

    def are_newer(self, time: float) -> bool:
        """Whether all of them exist and have been written since a time in seconds."""
        return all(path.exists() and path.stat().st_mtime >= time for path in self.paths())


def picture_suffix(name: Path) -> str:
    """The end of the names of pictures of an image: its own, if such images can be written."""
    return name.suffix if cv2.haveImageWriter(f"x{name.suffix}") else ".png"


def dataset_ids(metadata: Metadata) -> Mapping[int, int]:
    """The ids that a data set's files have for the classes; empty if they are not known."""
    things = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    stuff = metadata.get("stuff_dataset_id_to_contiguous_id") or {}
    return {number: id_ for id_, number in {**stuff, **things}.items()}


def started(folder: Path, settings: Mapping[str, object], *, go_on: bool) -> float:
    """Writes down what predictions are made with, before the first of them is.

    Args:
        folder: of the predictions.
        settings: that json can hold.
        go_on: whether predictions of an earlier start are kept.

    Returns:
        The time in seconds of the first start with these settings: older files are of others.

    Raises:
        ValueError: the folder holds predictions of other settings, which are to be kept.
    """
    path = folder / SETTINGS
    if go_on:
        for unfinished in folder.glob(f"{_UNFINISHED}*"):  # of a process that was killed
            shutil.rmtree(unfinished, ignore_errors=True)
    if go_on and path.is_file():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError):
            before = {}
        differ = [
            f"{key} was {before.get(key)!r} and is {value!r}"
            for key, value in settings.items()
            if before.get(key) != value
        ]
        if differ:
            raise ValueError(
                f"--skip-existing goes on with the settings of {path}, but {', '.join(differ)}: "
                "choose another --output, or leave --skip-existing out to predict all anew"
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return path.stat().st_mtime


class _JsonList:
    """A json file that holds a list, one entry per line, written entry by entry."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._separator = "\n"

    def __enter__(self) -> "_JsonList":
        self._file = self._path.open("w", encoding="utf-8")
        self._file.write("[")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.write("\n]\n")
        self._file.close()

    def add(self, entry: str) -> None:
        """Writes an entry, which is json in one line."""
        self._file.write(f"{self._separator}{entry}")
        self._separator = ",\n"


def merge_json(files: Iterable[Path | None], folder: Path) -> None:
    """Writes `predictions.json`, one list of what is in the lists of several json files.

    Args:
        files: that exist and that `FoundWriter` has written.
        folder: to write to.
    """
    target, making = folder / PREDICTIONS, folder / f".{PREDICTIONS}.part"
    with _JsonList(making) as merged:
        for path in filter(None, files):
            with path.open(encoding="utf-8") as lines:  # a video's may not fit in memory
                for line in lines:
                    if line.startswith("{"):
                        merged.add(line.rstrip(",\n"))
    making.replace(target)


def _write_image(path: Path, image: np.ndarray) -> None:
    """Writes a BGR image (H, W, 3)."""
    if not cv2.imwrite(str(path), image):
        raise OSError(f"{path.name} cannot be written")


def _encoded(mask: np.ndarray) -> dict[str, object]:
    encoded = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


@contextmanager
def _making(root: Path) -> Iterator[Path]:
    """A folder for unfinished files, which is removed."""
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace(made: Path, target: Path) -> None:
    if made.is_dir() and target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    made.replace(target)


class FoundWriter:
    """Writes what is found in an image, or in the frames of a video.

    Args:
        files: to write.
        root: folder that they are in.
        making: folder for unfinished files.
        name: of the input, below the folder that was given.
        palette: of the classes.
        ids: of the classes in files, by number; without them, the numbers stand in json.
        fps: frames per second; None for an image.
        shown: what is drawn in the picture.
    """

    def __init__(
        self,
        files: InputFiles,
        root: Path,
        making: Path,
        name: Path,
        palette: Palette,
        ids: Mapping[int, int],
        fps: float | None,
        shown: Shown,
    ) -> None:
        self._files = files
        self._root = root
        self._making = making
        self._name = name
        self._palette = palette
        self._ids = ids
        self._fps = fps
        self._shown = shown
        self._frame = 0
        self._entries = _JsonList(making / "found.json")
        self._video: cv2.VideoWriter | None = None
        for folder in (CROPS, MAPS):
            (making / folder).mkdir()

    @classmethod
    @contextmanager
    def open(
        cls,
        files: InputFiles,
        root: Path,
        name: Path,
        palette: Palette,
        ids: Mapping[int, int],
        fps: float | None = None,
        shown: Shown = EVERYTHING,
    ) -> "Iterator[FoundWriter]":
        """A writer whose files appear at the end of the `with` statement, unless it fails.

        Args:
            files, root, name, palette, ids, fps, shown: see the class.
        """
        with _making(root) as making:
            writer = cls(files, root, making, name, palette, ids, fps, shown)
            try:
                with writer._entries:
                    yield writer
            finally:
                if writer._video is not None:
                    writer._video.release()
            writer._finish()

    def add(self, image: np.ndarray, found: Found) -> None:
        """Writes an image, or the next frame of a video.

        Args:
            image: (H, W, 3) BGR.
            found: in the image.

        Raises:
            OSError: a file cannot be written.
            UnsupportedFilesError: there are no objects to cut out, or no map to write.
        """
        if self._files.crops is not None:
            self._add_crops(image, found)
        if self._files.maps is not None:
            self._add_map(found)
        if self._files.json is not None:
            for entry in self._results(found):
                self._entries.add(json.dumps(entry))
        if self._files.picture is not None:
            self._add_picture(self._files.picture, image, found)
        self._frame += 1

    def _prefix(self) -> str:
        return "" if self._fps is None else f"{self._frame:06d}_"

    def _add_picture(self, target: Path, image: np.ndarray, found: Found) -> None:
        is_frame = self._fps is not None
        rgb = np.ascontiguousarray(image[:, :, ::-1])
        drawn = draw_found(rgb, found, self._palette, self._shown, is_frame=is_frame)[:, :, ::-1]
        path = self._making / f"picture{target.suffix}"
        if self._fps is None:
            _write_image(path, drawn)
            return
        if self._video is None:
            size = (drawn.shape[1], drawn.shape[0])
            codec = cv2.VideoWriter.fourcc(*_CODEC)
            self._video = cv2.VideoWriter(str(path), codec, self._fps, size)
            if not self._video.isOpened():
                raise OSError(f"{target} cannot be written as video")
        self._video.write(np.ascontiguousarray(drawn))

    def _add_crops(self, image: np.ndarray, found: Found) -> None:
        if found.labels is not None:
            raise UnsupportedFilesError("--crops needs a model that finds objects")
        suffix = picture_suffix(self._name)
        for number, (kind, box, end) in enumerate(_objects(found), start=1):
            x0, y0, x1, y1 = (max(0, side) for side in box)
            crop = image[y0:y1, x0:x1]
            if crop.size:
                word = re.sub(r"\W+", "_", self._palette.name(kind))[:60]
                name = f"{self._prefix()}{number:03d}_{word}{end}{suffix}"
                _write_image(self._making / CROPS / name, crop)

    def _add_map(self, found: Found) -> None:
        if found.instances is not None:
            raise UnsupportedFilesError("--maps needs a semantic or panoptic model")
        name = "map.png" if self._fps is None else f"{self._frame:06d}.png"
        if found.segments is not None:
            image = Image.fromarray(id_to_rgb(found.segments[0]))
        else:
            assert found.labels is not None
            image = self._label_image(found.labels)
        image.save(self._making / MAPS / name)

    def _label_image(self, labels: np.ndarray) -> Image.Image:
        count = len(self._palette.names)
        largest = 2**8 - 1 if count <= _MAX_LABELS else 2**16 - 1
        numbers = np.where(labels == NOTHING, largest, labels)
        if largest > _MAX_LABELS:
            return Image.fromarray(numbers.astype(np.uint16))
        image = Image.fromarray(numbers.astype(np.uint8))
        # Viewers show the colours of the palette, readers of label maps take the numbers.
        image.putpalette(self._palette.table(256).tobytes())
        return image

    def _results(self, found: Found) -> list[Entry]:
        stem = self._name.stem
        is_number = re.fullmatch(r"[0-9]{1,18}", stem)
        # As files of COCO are named by the ids of their images.
        common: Entry = {"image_id": int(stem) if is_number else self._name.as_posix()}
        common["file_name"] = self._name.as_posix()
        if self._fps is not None:
            common.update(image_id=f"{self._name.as_posix()}:{self._frame}", frame=self._frame)
        if found.segments is not None:
            return [self._panoptic_result(common, found.segments[1])]
        if found.instances is not None:
            results: Sequence[Mapping] = to_results(found.instances, None)
        else:
            assert found.labels is not None
            kinds = [kind for kind in np.unique(found.labels).tolist() if kind != NOTHING]
            results = [
                {"category_id": kind, "segmentation": _encoded(found.labels == kind)}
                for kind in kinds
            ]
        return [{**result, **common, **self._category(result["category_id"])} for result in results]

    def _category(self, kind: int) -> Entry:
        return {"category_id": self._ids.get(kind, kind), "category_name": self._palette.name(kind)}

    def _panoptic_result(self, common: Entry, segments: Sequence[Mapping]) -> Entry:
        shown = [
            {"id": s["id"], "isthing": bool(s["isthing"]), **self._category(s["category_id"])}
            for s in segments
        ]
        result = {**common, "segments_info": shown}
        if self._files.maps is not None:  # COCO's name for the file of the map
            name = self._files.maps.relative_to(self._root / MAPS).as_posix()
            result["file_name"] = name if self._fps is None else f"{name}/{self._frame:06d}.png"
            result["image_file_name"] = common["file_name"]
        return result

    def _finish(self) -> None:
        made = {
            self._files.crops: self._making / CROPS,
            self._files.maps: self._making / (f"{MAPS}/map.png" if self._fps is None else MAPS),
            self._files.picture: next(iter(self._making.glob("picture.*")), None),
        }
        if self._files.json is not None:
            made[self._files.json] = self._making / "found.json"
        for target, path in made.items():
            if target is not None and path is not None:
                _replace(path, target)


def _objects(found: Found) -> Iterator[tuple[int, tuple[int, ...], str]]:
    """Class, box (x0, y0, x1, y1) in whole pixels, and the end of the name, of each object."""
    if found.instances is not None:
        boxes = found.instances.pred_boxes.tensor.tolist()
        kinds, scores = found.instances.pred_classes.tolist(), found.instances.scores.tolist()
        for kind, (x0, y0, x1, y1), score in zip(kinds, boxes, scores, strict=True):
            corners = (math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1))
            yield kind, corners, f"_{score:.2f}"
        return
    assert found.segments is not None
    ids, segments = found.segments
    for segment in (s for s in segments if s["isthing"]):
        x, y, width, height = cv2.boundingRect((ids == segment["id"]).astype(np.uint8))
        yield segment["category_id"], (x, y, x + width, y + height), ""
