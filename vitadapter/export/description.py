"""What an exported file says of itself, as JSON inside the file."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.data import transforms as T
from detectron2.data.catalog import Metadata
from PIL import Image
from torch import nn

import vitadapter
from vitadapter.data.transforms import ResizeToFit, StretchToMultiple
from vitadapter.engine.predictor import LazyPredictor
from vitadapter.modeling.inference import SlidingWindow
from vitadapter.modeling.mask2former import Mask2Former
from vitadapter.modeling.semantic import SemanticSegmentor

from .graphs import Graph
from .precision import name_of

__all__ = ["KEY", "Description", "describe"]

KEY = "vitadapter"  # of the metadata
_VERSION = 3
# Augmentations whose arguments are attributes of theirs, which are these.
_OWN_STEPS: dict[type[T.Augmentation], tuple[str, ...]] = {
    ResizeToFit: ("short", "long"),
    StretchToMultiple: ("divisor",),
}


@dataclass(frozen=True)
class Description:
    """How to use an exported model.

    Attributes:
        model: its class, for people.
        outputs: names of the outputs.
        image_format: "RGB" or "BGR".
        multiple: height and width of padded images are multiples of this, in pixels.
        takes_batches: whether it takes several images at once.
        full_size: whether its answers have the size that its input `output_size` says.
        size: (height, width) of padded images, if it takes only one.
        resize: steps that resize an image, each with the `name` of its class and its arguments.
        thing_classes, stuff_classes: names, if they are known.
        thing_ids, stuff_ids: pairs of a class's id in the files of its data set and its number, if
            they are known.
        pixel_mean, pixel_std: what the graph normalises with.
        sliding_window: arguments of `SlidingWindow`; None to predict whole images.
        queries: of a Mask2Former, its stride of masks and the arguments of its inference.
        precision: name of what the file computes in; see `PRECISIONS`.
        software: versions that wrote the file.
        version: of this format.
    """

    model: str
    outputs: list[str]
    image_format: str
    multiple: int
    takes_batches: bool
    full_size: bool
    size: list[int] | None
    resize: list[dict[str, Any]]
    thing_classes: list[str] | None
    stuff_classes: list[str] | None
    thing_ids: list[list[int]] | None
    stuff_ids: list[list[int]] | None
    pixel_mean: list[float]
    pixel_std: list[float]
    sliding_window: dict[str, Any] | None
    queries: dict[str, Any] | None
    precision: str
    software: dict[str, str]
    version: int = _VERSION

    @property
    def answers(self) -> list[str]:
        """Keys of the `Prediction` of an image; none of a backbone alone."""
        if self.queries is None:
            of_outputs = {"boxes": "instances", "sem_seg": "sem_seg"}
            return [key for output, key in of_outputs.items() if output in self.outputs]
        kinds = {"semantic": "sem_seg", "instances": "instances", "panoptic": "panoptic_seg"}
        return [key for kind, key in kinds.items() if self.queries[kind]]

    def augmentations(self) -> T.AugmentationList:
        """Returns the steps that resize an image."""
        classes = {kind.__name__: kind for kind in (T.ResizeShortestEdge, *_OWN_STEPS)}
        steps = [dict(step) for step in self.resize]
        return T.AugmentationList([classes[step.pop("name")](**step) for step in steps])

    def metadata(self) -> Metadata:
        """Returns what is known of the classes."""
        metadata = Metadata()
        for kind in ("thing", "stuff"):
            names, ids = getattr(self, f"{kind}_classes"), getattr(self, f"{kind}_ids")
            if names is not None:
                metadata.set(**{f"{kind}_classes": names})
            if ids is not None:
                metadata.set(**{f"{kind}_dataset_id_to_contiguous_id": dict(ids)})
        return metadata

    def to_json(self) -> str:
        """Returns it as text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Description":
        """Reads what `to_json` has written.

        Raises:
            ValueError: it is damaged, or was written by a newer version.
        """
        entries = json.loads(text)
        if not isinstance(entries, dict) or not isinstance(entries.get("version"), int):
            raise ValueError("its description is damaged")
        if entries["version"] > _VERSION:
            raise ValueError(
                f"it has version {entries['version']} of the format, this vitadapter "
                f"{vitadapter.__version__} reads up to {_VERSION}: update it"
            )
        if entries["version"] < 2:
            entries["precision"] = name_of(torch.float32)
        if entries["version"] < 3:
            entries["full_size"] = False
        entries["version"] = _VERSION
        names = {field.name for field in dataclasses.fields(cls)}
        if set(entries) != names:
            raise ValueError(f"its description is damaged: {sorted(names ^ set(entries))}")
        return cls(**entries)


def describe(
    predictor: LazyPredictor,
    graph: Graph,
    size: tuple[int, int] | None,
    precision: torch.dtype = torch.float32,
) -> Description:
    """Describes the model of a predictor.

    Args:
        predictor: of the model.
        graph: of the model.
        size: see `export`.
        precision: see `export`.

    Raises:
        ValueError: images are prepared in a way that the file cannot describe.
    """
    model, metadata = predictor.model, predictor.metadata
    return Description(
        model=type(model).__name__,
        outputs=list(graph.outputs),
        image_format=predictor.image_format,
        multiple=graph.multiple,
        takes_batches=graph.takes_batches,
        full_size=graph.full_size,
        resize=[_step_of(step) for step in predictor.augmentations.augs],
        thing_classes=metadata.get("thing_classes"),
        stuff_classes=metadata.get("stuff_classes"),
        thing_ids=_pairs(metadata.get("thing_dataset_id_to_contiguous_id")),
        stuff_ids=_pairs(metadata.get("stuff_dataset_id_to_contiguous_id")),
        pixel_mean=model.pixel_mean.flatten().tolist(),
        pixel_std=model.pixel_std.flatten().tolist(),
        sliding_window=_window_of(model),
        queries=_queries_of(model),
        precision=name_of(precision),
        size=None if size is None else list(size),
        software={"vitadapter": vitadapter.__version__, "torch": torch.__version__},
    )


def _pairs(numbers: Mapping[int, int] | None) -> list[list[int]] | None:
    return None if numbers is None else [[id_, number] for id_, number in numbers.items()]


def _step_of(step: T.Augmentation) -> dict[str, Any]:
    name = type(step).__name__
    if type(step) in _OWN_STEPS:
        return {"name": name, **{key: getattr(step, key) for key in _OWN_STEPS[type(step)]}}
    if type(step) is T.ResizeShortestEdge:
        (least, *others), bilinear = (
            step.short_edge_length,
            step.interp == Image.Resampling.BILINEAR,
        )
        if bilinear and all(other == least for other in others):
            return {"name": name, "short_edge_length": least, "max_size": step.max_size}
    raise ValueError(
        "an exported file can only resize images by ResizeShortestEdge to one size (bilinear), "
        f"ResizeToFit and StretchToMultiple, got {step}: set dataloader.test.mapper.augmentations"
    )


def _window_of(model: nn.Module) -> dict[str, Any] | None:
    window = model.inference if isinstance(model, SemanticSegmentor) else None
    if window is None:
        return None
    if type(window) is not SlidingWindow:
        raise ValueError(
            f"an exported file can only describe SlidingWindow, got {type(window).__name__}: set "
            "model.inference"
        )
    return dict(
        crop_size=window.crop_size,
        stride=window.stride,
        pad_to_crop=window.pad_to_crop,
        windows_per_batch=window.windows_per_batch,
    )


def _queries_of(model: nn.Module) -> dict[str, Any] | None:
    if not isinstance(model, Mask2Former):
        return None
    instances, panoptic = model.instance_inference, model.panoptic_inference
    described: Mapping[str, Any] = {
        "stride": model.sem_seg_head.common_stride,
        "semantic": model.semantic_on,
        "instances": instances
        and dict(thing_classes=instances.thing_classes, max_per_image=instances.max_per_image),
        "panoptic": panoptic
        and dict(
            thing_classes=sorted(panoptic.thing_classes),
            score_threshold=panoptic.score_threshold,
            overlap_threshold=panoptic.overlap_threshold,
        ),
    }
    return dict(described)
