"""What is shown of a prediction: selected by score and class, as a picture, and in words."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import cast

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from torch import Tensor

from vitadapter.data.dataset_source import Segment, first_few
from vitadapter.visualization.overlays import (
    Objects,
    Palette,
    draw_label_map,
    draw_legend,
    draw_objects,
    text_size,
)

__all__ = [
    "EVERYTHING",
    "Found",
    "Selection",
    "Shown",
    "chosen_classes",
    "class_names",
    "draw_found",
    "in_words",
]

_MOST_NAMED = 6  # classes of a label map in words
_LEGEND_SHARE = 4  # the legend of a frame has at most a quarter of its height

NOTHING = -1
"""In label maps: pixels of classes that are not asked for."""


@dataclass(frozen=True)
class Found:
    """What is found in an image, in its pixels. One of these is given.

    Args:
        instances: on the CPU, those of highest score first.
        labels: (H, W), the number of each pixel's class, or `NOTHING`.
        segments: ids (H, W) of segments, 0 for none, and the segments.
    """

    instances: Instances | None = None
    labels: np.ndarray | None = None
    segments: tuple[np.ndarray, Sequence[Segment]] | None = None

    @classmethod
    def of(cls, prediction: Mapping[str, object]) -> "Found":
        """All that is in the output of a model for an image."""
        if "panoptic_seg" in prediction:
            ids, segments = cast(tuple[Tensor, list[Segment]], prediction["panoptic_seg"])
            return cls(segments=(ids.numpy(force=True), segments))
        if "instances" in prediction:
            instances = cast(Instances, prediction["instances"]).to("cpu")
            if (instances.scores.diff() > 0).any():  # not as detectors return them
                instances = instances[instances.scores.argsort(descending=True)]
            return cls(instances)
        if "label_map" in prediction:
            return cls(labels=cast(Tensor, prediction["label_map"]).numpy(force=True))
        return cls(labels=cast(Tensor, prediction["sem_seg"]).argmax(dim=0).numpy(force=True))

    def classes_of_segments(self) -> np.ndarray:
        """The label map (H, W) of `segments`."""
        assert self.segments is not None
        ids, segments = self.segments
        table = np.full(max([0, *(s["id"] for s in segments)]) + 1, NOTHING)
        for segment in segments:
            table[segment["id"]] = segment["category_id"]
        return table[ids]


@dataclass(frozen=True)
class Selection:
    """Which predictions are wanted.

    Args:
        score_threshold: instances must have at least this score, in [0, 1].
        classes: numbers of classes; None for all.
    """

    score_threshold: float = 0.5
    classes: Collection[int] | None = None

    def __call__(self, prediction: Mapping[str, object]) -> Found:
        """What is wanted of the output of a model for an image."""
        return self.of(Found.of(prediction))

    def of(self, found: Found) -> Found:
        """What is wanted of all that is found in an image."""
        if found.segments is not None:
            return self._of_segments(*found.segments)
        if found.instances is not None:
            return self._of_instances(found.instances)
        assert found.labels is not None
        if self.classes is None:
            return found
        is_wanted = np.isin(found.labels, [*self.classes])
        return Found(labels=np.where(is_wanted, found.labels, NOTHING))

    def _of_instances(self, instances: Instances) -> Found:
        kept = instances.scores >= self.score_threshold
        if self.classes is not None:
            kept &= torch.isin(instances.pred_classes, torch.tensor([*self.classes]))
        return Found(instances[kept])  # once: masks of a large image have gigabytes

    def _of_segments(self, ids: np.ndarray, segments: Sequence[Segment]) -> Found:
        kept = [s for s in segments if self.classes is None or s["category_id"] in self.classes]
        shown = np.where(np.isin(ids, [s["id"] for s in kept]), ids, 0)
        return Found(segments=(shown, kept))


@dataclass(frozen=True)
class Shown:
    """What is drawn of predictions.

    Args:
        boxes: of objects.
        masks: of objects, or the colours of a label map.
        labels: class and score of each object, or the legend of a label map.
    """

    boxes: bool = True
    masks: bool = True
    labels: bool = True


EVERYTHING = Shown()


def class_names(metadata: Metadata) -> Sequence[str]:
    """The names of all classes that a model predicts; none if they are not known."""
    # Of a panoptic segmenter, the stuff classes are all classes.
    return metadata.get("stuff_classes") or metadata.get("thing_classes") or ()


def chosen_classes(wanted: Sequence[str], names: Sequence[str]) -> frozenset[int]:
    """The numbers of classes.

    Args:
        wanted: names of classes.
        names: of all classes.

    Raises:
        ValueError: a class is not known; the message has near ones.
    """
    if not names:
        raise ValueError(
            f"--classes {' '.join(wanted)} needs the names of the model's classes, which are not "
            "known: set dataset.test.json_file=..., the annotations that have them"
        )
    for name in wanted:
        if name not in names:
            near = get_close_matches(name.lower(), [n.lower() for n in names], n=3)
            shown = [n for n in names if n.lower() in near]
            hint = (
                f"near ones: {', '.join(shown)}" if shown else f"there are {first_few(names, 20)}"
            )
            raise ValueError(f"--classes: the model has no class {name!r} ({hint})")
    return frozenset(number for number, name in enumerate(names) if name in wanted)


def _objects(instances: Instances, palette: Palette, shown: Shown) -> Objects:
    classes = instances.pred_classes.tolist()
    scores = instances.scores.tolist()
    labels = [f"{palette.name(c)} {score:.2f}" for c, score in zip(classes, scores, strict=True)]
    return Objects(
        classes,
        instances.pred_boxes.tensor.numpy(),
        instances.pred_masks if shown.masks and instances.has("pred_masks") else None,
        labels if shown.labels else [""] * len(classes),
    )


def _legend_height(image: np.ndarray, palette: Palette) -> int:
    """The same for all frames of a video; even, as encoders want it."""
    every = draw_legend(range(len(palette.names)), palette, image.shape[1], text_size(image))
    height = min(every.shape[0], max(2, image.shape[0] // _LEGEND_SHARE))
    return height - height % 2


def draw_found(
    image: np.ndarray,
    found: Found,
    palette: Palette,
    shown: Shown = EVERYTHING,
    *,
    is_frame: bool = False,
) -> np.ndarray:
    """The image with what is found in it.

    Args:
        image: (H, W, 3) RGB.
        found: in the image.
        palette: of the classes.
        shown: what is drawn of it.
        is_frame: whether it is one of several images that must have the same size.

    Returns:
        (H, W, 3) RGB, or with a legend below it if every pixel has a class.
    """
    if found.instances is not None:
        objects = _objects(found.instances, palette, shown)
        return draw_objects(image, objects, palette, draw_boxes=shown.boxes)
    ids = None if found.segments is None else found.segments[0]
    labels = found.classes_of_segments() if found.labels is None else found.labels
    drawn = draw_label_map(image, labels, palette, ids) if shown.masks else image
    named = [number for number in np.unique(labels).tolist() if number != NOTHING]
    height = _legend_height(image, palette) if is_frame else None
    if not shown.labels or (not named and not is_frame):
        return drawn
    legend = draw_legend(named, palette, image.shape[1], text_size(image), height)
    return np.concatenate([drawn, legend])


def in_words(found: Found, palette: Palette) -> str:
    """Such as "person 0.98 0.91, dog 0.88", "road 61 %, sky 30 %" or "2 person, sky"."""
    if found.instances is not None:
        scores: dict[int, list[str]] = {}
        pairs = zip(found.instances.pred_classes, found.instances.scores, strict=True)
        for kind, score in pairs:
            scores.setdefault(int(kind), []).append(f"{float(score):.2f}")
        words = [f"{palette.name(kind)} {' '.join(listed)}" for kind, listed in scores.items()]
    elif found.labels is not None:
        numbers, counts = np.unique(found.labels[found.labels != NOTHING], return_counts=True)
        shares = Counter(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
        words = [
            f"{palette.name(kind)} {count / found.labels.size:.0%}"
            for kind, count in shares.most_common(_MOST_NAMED)
        ]
        words += ["..."] * (len(shares) > _MOST_NAMED)
    else:
        assert found.segments is not None
        kinds = Counter(s["category_id"] for s in found.segments[1])
        words = [
            f"{count} {palette.name(kind)}" if count > 1 else palette.name(kind)
            for kind, count in kinds.items()
        ]
    return ", ".join(words) or "nothing"
