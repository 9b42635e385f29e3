"""What is in a data set, and what of it would make training or evaluation wrong."""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tabulate import tabulate

from vitadapter.data.coco.annotations import coco_classes
from vitadapter.data.coco.json_entries import Findings, read_json
from vitadapter.data.coco.objects import all_numbers
from vitadapter.data.dataset_source import first_few, spread
from vitadapter.data.folders.listing import image_facts
from vitadapter.data.folders.prepare import LabelSettings, Prepared
from vitadapter.data.image_files import open_image, read_image
from vitadapter.data.panoptic.annotations import read_panoptic_json, read_panoptic_records
from vitadapter.data.panoptic.maps import read_record_map
from vitadapter.data.sem_seg.labels import LabelReader, read_class_names
from vitadapter.data.sem_seg.layouts import SemSegLayout, find_pairs

__all__ = ["CheckReport", "check_dataset", "check_once"]

logger = logging.getLogger(__name__)

ROLES = ("train", "test")
# Images that are read at the start of a run: seconds, once for each state of the data.
_NUM_IMAGES_READ = 2000
_NUM_READERS = 4
# In COCO's words: areas of small and of medium objects end here, in square pixels.
_SMALL, _MEDIUM = 32**2, 96**2
# Test images that may be in the training data too.
_MAX_SHARED = 0.01
# How often the most frequent class may occur for each object of the rarest.
_BALANCED = 100


@dataclass
class CheckReport:
    """What a check has found.

    Attributes:
        counts: of each line of the table, by role.
        classes: (number of objects or pixels, number of images) of each class, by role.
        class_names: in the order of the class numbers.
        unit: what is counted of classes.
        warnings: what may be wrong.
        refusals: what makes training or evaluation wrong.
    """

    counts: dict[str, dict[str, object]] = field(default_factory=dict)
    classes: dict[str, Counter[int]] = field(default_factory=dict)
    class_images: dict[str, Counter[int]] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    unit: str = "objects"
    warnings: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def set(self, line: str, role: str, value: object) -> None:
        """Fills a place of the table."""
        self.counts.setdefault(line, {})[role] = value

    def tables(self) -> str:
        """Both tables, warnings and refusals, as text."""
        rows = [
            [line, *(by_role.get(r, "-") for r in ROLES)] for line, by_role in self.counts.items()
        ]
        parts = [tabulate(rows, ["", *ROLES], tablefmt="github")]
        heads = [f"{role} {what}" for role in ROLES for what in (self.unit, "images")]
        rows = [
            [
                name,
                *(c.get(r, Counter())[n] for r in ROLES for c in (self.classes, self.class_images)),
            ]
            for n, name in enumerate(self.class_names)
        ]
        parts.append(tabulate(rows, ["class", *heads], tablefmt="github"))
        parts += [f"warning: {text}" for text in self.warnings]
        parts += [f"refused: {text}" for text in self.refusals]
        return "\n\n".join(parts)


@dataclass(frozen=True)
class _Image:
    """An image as a data set says that it is."""

    path: str
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class _Read:
    """An image as its file is."""

    digest: str = ""
    error: str = ""
    mode: str = ""
    rotated: bool = False
    other_size: bool = False


def _read(image: _Image) -> _Read:
    digest = ""
    try:
        facts = image_facts(image.path)
        digest = hashlib.sha1(Path(image.path).read_bytes()).hexdigest()
        read_image(image.path, "RGB")
    except (OSError, ValueError) as error:
        return _Read(digest, error=str(error))
    other = image.size is not None and facts.size != tuple(image.size)
    return _Read(digest, "", facts.mode, facts.rotated, other)


def _kinds(read: Iterable[_Read]) -> dict[str, int]:
    """Numbers of images that are not 8 bit grey or colour, by line of the table."""
    counts = Counter(one.mode for one in read)
    lines = {"16-bit or 32-bit images": 0, "float images": 0, "CMYK images": counts["CMYK"]}
    for mode, count in counts.items():
        if mode.startswith("I"):
            lines["16-bit or 32-bit images"] += count
        if mode == "F":
            lines["float images"] += count
    return lines


def _check_images(
    report: CheckReport, images: Mapping[str, Sequence[_Image]], limit: int | None
) -> None:
    """Reads images, and compares them with what is said of them and with each other."""
    digests: dict[str, dict[str, str]] = {}
    for role, listed in images.items():
        chosen = spread(listed, limit or len(listed))
        with ThreadPoolExecutor(_NUM_READERS) as readers:
            read = dict(zip((i.path for i in chosen), readers.map(_read, chosen), strict=True))
        report.set("images read", role, len(read))
        digests[role] = {one.digest: path for path, one in read.items() if one.digest}
        copies = len([one for one in read.values() if one.digest]) - len(digests[role])
        bad = [path for path, one in read.items() if one.error]
        sizes = [path for path, one in read.items() if one.other_size]
        report.set("unreadable images", role, len(bad))
        report.set("images of another size than annotated", role, len(sizes))
        report.set("copies of another image", role, copies)
        report.set("images rotated by EXIF data", role, sum(o.rotated for o in read.values()))
        for line, count in _kinds(read.values()).items():
            report.set(line, role, count)
        for what, paths in (("cannot be read", bad), ("have another size than annotated", sizes)):
            if paths:
                text = f"{len(paths)} images of dataset.{role} {what} ({first_few(paths)})"
                where = report.refusals if role == "test" or len(paths) == len(read) else None
                (report.warnings if where is None else where).append(text)
        if copies:
            report.warnings.append(f"{copies} images of dataset.{role} are copies of others")
    if len(images) == len(ROLES):
        _check_shared(report, images, digests)


def _check_shared(
    report: CheckReport,
    images: Mapping[str, Sequence[_Image]],
    digests: Mapping[str, Mapping[str, str]],
) -> None:
    paths = {role: {str(Path(i.path).resolve()) for i in images[role]} for role in ROLES}
    same = digests["train"].keys() & digests["test"].keys()
    shared = sorted({str(Path(digests["test"][d]).resolve()) for d in same})
    shared = sorted({*shared, *(paths["train"] & paths["test"])})
    report.set("images that are in both", "test", len(shared))
    if shared:
        text = (
            f"{len(shared)} images of dataset.test are in dataset.train too ({first_few(shared)})"
        )
        much = len(shared) > _MAX_SHARED * len(paths["test"])
        (report.refusals if much else report.warnings).append(text)


def _check_balance(report: CheckReport) -> None:
    """Classes that cannot be learned, or hardly."""
    counts = [report.classes["train"][n] for n in range(len(report.class_names))]
    absent = [name for name, count in zip(report.class_names, counts, strict=True) if not count]
    if absent:
        report.warnings.append(
            f"{len(absent)} of {len(counts)} classes do not occur in training "
            f"({first_few(absent, 10)})"
        )
    present = [count for count in counts if count]
    if present and max(present) > _BALANCED * min(present):
        report.warnings.append(
            f"the most frequent class has {max(present)} {report.unit} in training, the rarest "
            f"{min(present)} ({report.class_names[counts.index(min(present))]})"
        )
    if not present:
        report.refusals.append(f"dataset.train has no {report.unit}")


def _boxes(content: Mapping[str, object], role: str, report: CheckReport) -> None:
    """Counts objects by size, and boxes that are not inside their image."""
    sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    lines = dict.fromkeys(
        (
            *("objects", "crowds", "small objects", "medium objects", "large objects"),
            *("boxes that reach out of the image", "boxes outside the image", "boxes without area"),
        ),
        0,
    )
    for annotation in content["annotations"]:
        box = annotation.get("bbox")
        known = annotation.get("image_id") in sizes
        if not known or not isinstance(box, list) or len(box) != 4 or not all_numbers(box):
            continue
        height, width = sizes[annotation["image_id"]]
        x, y, w, h = box
        lines["crowds" if annotation.get("iscrowd") else "objects"] += 1
        area = annotation.get("area") or w * h
        size = "small" if area < _SMALL else "medium" if area < _MEDIUM else "large"
        lines[f"{size} objects"] += not annotation.get("iscrowd")
        if not (w > 0 and h > 0):
            lines["boxes without area"] += 1
        elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
            lines["boxes outside the image"] += 1
        elif x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
            lines["boxes that reach out of the image"] += 1
    for line, count in lines.items():
        report.set(line, role, count)
    total = lines["objects"] + lines["crowds"]
    unusable = lines["boxes without area"] + lines["boxes outside the image"]
    if 2 * unusable > total:
        report.refusals.append(
            f"{unusable} of the {total} boxes of dataset.{role} have no area in their image"
        )
    elif unusable:
        report.warnings.append(
            f"{unusable} of the {total} boxes of dataset.{role} have no area in their image and "
            "are left out"
        )


def _check_instances(values: Mapping[str, object], report: CheckReport) -> dict[str, list[_Image]]:
    images = {}
    for role in ROLES:
        source = str(values[f"dataset.{role}.json_file"])
        content = read_json(source)
        classes = coco_classes(content, source, Findings())
        numbers = {category["id"]: number for number, category in enumerate(classes)}
        report.class_names = [str(category["name"]) for category in classes]
        seen: dict[int, set[object]] = defaultdict(set)
        counts: Counter[int] = Counter()
        for annotation in content["annotations"]:
            number = numbers.get(annotation.get("category_id"))
            if number is not None and not annotation.get("iscrowd"):
                counts[number] += 1
                seen[number].add(annotation["image_id"])
        report.classes[role] = counts
        report.class_images[role] = Counter({n: len(ids) for n, ids in seen.items()})
        root = Path(str(values[f"dataset.{role}.image_root"]))
        report.set("images", role, len(content["images"]))
        with_objects = {annotation.get("image_id") for annotation in content["annotations"]}
        empty = sum(image["id"] not in with_objects for image in content["images"])
        report.set("images without objects", role, empty)
        _boxes(content, role, report)
        images[role] = [
            _Image(str(root / i["file_name"]), (i["height"], i["width"]))
            for i in content["images"]
            if i.get("file_name")
        ]
    return images


def _check_semantic(
    values: Mapping[str, object], report: CheckReport, labels: LabelSettings, limit: int | None
) -> dict[str, list[_Image]]:
    num_classes = int(str(values["dataset.num_classes"]))
    names = values["dataset.class_names"]
    report.class_names = (
        [str(n) for n in range(num_classes)] if names is None else read_class_names(str(names))
    )
    report.unit = "pixels"
    read = LabelReader(num_classes, labels.ignore_label, labels.reduce_zero_label)
    images = {}
    for role in ROLES:
        roots = (str(values[f"dataset.{role}.{key}"]) for key in ("image_root", "label_root"))
        layout = SemSegLayout(*roots, report.class_names, labels.reduce_zero_label, None)
        pairs, _, _ = find_pairs(layout)
        chosen = spread(pairs, limit or len(pairs))
        counts = np.zeros(num_classes, np.int64)
        shown = np.zeros(num_classes, np.int64)
        faults = []
        for image, label in chosen:
            try:
                maps = read(label)
                if maps.shape != image_facts(image).size:
                    raise ValueError(f"{label} has (height, width) {maps.shape}, not its image's")
            except ValueError as error:
                faults.append(str(error))
                continue
            found = np.bincount(maps[maps != labels.ignore_label], minlength=num_classes)
            counts += found
            shown += found > 0
        report.set("images", role, len(pairs))
        report.set("label maps read", role, len(chosen))
        report.set("unusable label maps", role, len(faults))
        report.classes[role] = Counter(dict(enumerate(counts.tolist())))
        report.class_images[role] = Counter(dict(enumerate(shown.tolist())))
        if faults:
            report.refusals.append(
                f"{len(faults)} of {len(chosen)} label maps of dataset.{role} cannot be used: "
                f"{first_few(faults)}"
            )
        images[role] = [_Image(image) for image, _ in pairs]
    return images


def _check_panoptic(
    values: Mapping[str, object], report: CheckReport, limit: int | None
) -> dict[str, list[_Image]]:
    report.unit = "segments"
    images = {}
    for role in ROLES:
        keys = (f"dataset.{role}.{key}" for key in ("json_file", "panoptic_root", "image_root"))
        files = [str(values[key]) for key in keys]
        report.class_names = read_panoptic_json(files[0])[1].names
        records = read_panoptic_records(*files)
        faults = []
        chosen = spread(records, limit or len(records))
        for record in chosen:
            try:
                with open_image(str(record["file_name"])):
                    read_record_map(record, np.empty((record["height"], record["width"], 0)))
            except ValueError as error:
                faults.append(str(error))
        segments = [[s["category_id"] for s in r["segments_info"]] for r in records]
        report.set("images", role, len(records))
        report.set("segments", role, sum(map(len, segments)))
        report.set("images without segments", role, sum(not found for found in segments))
        report.set("panoptic maps read", role, len(chosen))
        report.set("unusable panoptic maps", role, len(faults))
        report.classes[role] = Counter(n for found in segments for n in found)
        report.class_images[role] = Counter(n for found in segments for n in set(found))
        if faults:
            report.refusals.append(
                f"{len(faults)} of {len(chosen)} panoptic maps of dataset.{role} cannot be used: "
                f"{first_few(faults)}"
            )
        images[role] = [_Image(str(r["file_name"]), (r["height"], r["width"])) for r in records]
    return images


def check_dataset(
    prepared: Prepared, labels: LabelSettings, limit: int | None = None
) -> CheckReport:
    """Looks at the images and annotations of a data set.

    Annotations are all looked at. Of images and maps, which takes minutes in a large data set, at
    most a number of evenly spread ones of each split are.

    Args:
        prepared: of :func:`prepare`.
        labels: of label maps.
        limit: largest number of images; None for all.

    Raises:
        ValueError: a file contradicts itself so that it cannot be read.
    """
    report = CheckReport()
    if prepared.kind == "semantic":
        images = _check_semantic(prepared.values, report, labels, limit)
    elif prepared.kind == "panoptic":
        images = _check_panoptic(prepared.values, report, limit)
    else:
        images = _check_instances(prepared.values, report)
    _check_images(report, images, limit)
    _check_balance(report)
    return report


def check_once(prepared: Prepared, labels: LabelSettings) -> None:
    """Checks what a run would train on, unless this state of the folder has passed before.

    Raises:
        ValueError: training or evaluation would be wrong.
    """
    passed = prepared.folder / "check.md"
    if passed.is_file():
        return
    report = check_dataset(prepared, labels, _NUM_IMAGES_READ)
    logger.info("check of dataset.root=%s:\n%s", prepared.root, report.tables())
    if report.refusals:
        raise ValueError(
            f"dataset.root={prepared.root}: {'; '.join(report.refusals)}. Mend it, leave files out "
            "by dataset.exclude=[...], or set dataset.check=False to train nevertheless"
        )
    for text in report.warnings:
        logger.warning("dataset.root=%s: %s", prepared.root, text)
    making = passed.with_suffix(".tmp")
    making.write_text(report.tables(), encoding="utf-8", errors="surrogateescape")
    making.replace(passed)
