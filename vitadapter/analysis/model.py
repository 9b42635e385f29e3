"""Parameters and FLOPs of a config's model, by part, without its memory."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import singledispatch
from typing import cast

import torch
from detectron2.modeling import Backbone, GeneralizedRCNN, SemanticSegmentor
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, ImageList
from omegaconf import DictConfig
from tabulate import tabulate
from torch import Tensor, nn

from vitadapter.analysis.flops import FlopCounter
from vitadapter.analysis.synthetic_images import check_pixels
from vitadapter.engine.building import build
from vitadapter.modeling.roi_heads import CascadeROIHeads
from vitadapter.modeling.sparse_rcnn import SparseRCNN

__all__ = [
    "ModelAnalysis",
    "PartCosts",
    "analyze_model",
    "markdown",
    "part_of",
    "parts_of",
    "running_modules",
]

# How many RoIs mmdetection's script counts, with which the paper's figures were made.
BOX_ROIS = 1000
MASK_ROIS = 100

Features = dict[str, Tensor]


@dataclass(frozen=True)
class PartCosts:
    """What a part of a model costs, without the parts inside it that are listed themselves.

    Attributes:
        parameters: their number.
        trained: the number of those that have a gradient.
        flops: FLOPs of one image by operator; a multiply-add is one.
    """

    parameters: int
    trained: int
    flops: Counter[str]


@dataclass(frozen=True)
class ModelAnalysis:
    """What a model costs for one image.

    Attributes:
        image_size: (height, width) in pixels, before the model's own padding.
        parts: by the part's key in the config and its class, such as
            "backbone.bottom_up.net (ViT)".
        not_counted: calls of operators without a formula.
        has_heads: whether the FLOPs include the heads.
    """

    image_size: tuple[int, int]
    parts: dict[str, PartCosts]
    not_counted: Counter[str]
    has_heads: bool

    @property
    def total(self) -> PartCosts:
        """The sum of all parts."""
        parts = self.parts.values()
        return PartCosts(
            sum(part.parameters for part in parts),
            sum(part.trained for part in parts),
            sum((part.flops for part in parts), Counter()),
        )

    def table(self) -> str:
        """The figures as text, in millions and GFLOPs."""
        height, width = self.image_size
        rows = [
            (
                name,
                f"{part.parameters / 1e6:.3f}",
                f"{part.trained / 1e6:.3f}",
                f"{part.flops.total() / 1e9:.3f}",
            )
            for name, part in [*self.parts.items(), ("total", self.total)]
        ]
        header = ("part", "parameters (M)", "trained (M)", f"GFLOPs, {height} x {width}")
        operators = [
            (name, operator, f"{flops / 1e9:.3f}")
            for name, part in self.parts.items()
            for operator, flops in part.flops.most_common()
        ]
        lines = [
            markdown(rows, header, texts=len(header) - 1),
            markdown(operators, ("part", "operator", "GFLOPs"), texts=2),
            "A multiply-add is one FLOP. "
            f"R-CNNs are counted with {BOX_ROIS} boxes and {MASK_ROIS} masks.",
            "Without a formula, so not counted (calls): "
            + ", ".join(f"{name} ({calls})" for name, calls in self.not_counted.most_common()),
        ]
        if not self.has_heads:
            lines.append("The FLOPs of the heads are not counted: their class is not known here.")
        return "\n\n".join(lines)


def markdown(rows: Sequence[Sequence[str]], header: Sequence[str], *, texts: int = 1) -> str:
    """Returns a table.

    Args:
        rows: its cells.
        header: names of the columns.
        texts: how many columns, the first ones, have text: they are aligned to the left, the others
            to the right.
    """
    align = ["left"] * texts + ["right"] * (len(header) - texts)
    return tabulate(rows, header, tablefmt="github", disable_numparse=True, colalign=align)


class _OneLevelPooler(nn.Module):
    """Pools all boxes from the first level: which level it is changes no cost, but needs data."""

    def __init__(self, pooler: ROIPooler) -> None:
        super().__init__()
        self.pooler = pooler.level_poolers[0]

    def forward(self, features: Sequence[Tensor], boxes: Sequence[Boxes]) -> Tensor:
        rois = features[0].new_zeros(sum(len(image) for image in boxes), 5)
        return self.pooler(features[0], rois)


@singledispatch
def _run_heads(model: nn.Module, features: Features, image_size: tuple[int, int]) -> bool:
    """Runs what follows the backbone, as far as it costs the same for every image.

    Returns:
        Whether it is known how to run it.
    """
    return False


@_run_heads.register
def _(model: GeneralizedRCNN, features: Features, image_size: tuple[int, int]) -> bool:
    rpn, heads = model.proposal_generator, model.roi_heads
    rpn.rpn_head([features[name] for name in rpn.in_features])
    used = [features[name] for name in heads.box_in_features]
    boxes = Boxes(used[0].new_zeros(BOX_ROIS, 4))
    masks = Boxes(used[0].new_zeros(MASK_ROIS, 4))
    if isinstance(heads, CascadeROIHeads):
        semantic = heads.semantic_head
        if semantic is not None:
            semantic(features)
        for head, predictor in zip(heads.box_head, heads.box_predictor, strict=True):
            predictor(head(heads.box_pooler(used, [boxes])))
    else:
        heads.box_predictor(heads.box_head(heads.box_pooler(used, [boxes])))
    if heads.mask_on:
        pooled = heads.mask_pooler([features[name] for name in heads.mask_in_features], [masks])
        if isinstance(heads, CascadeROIHeads):
            heads._mask_logits(pooled, range(len(heads.mask_head)))
        else:
            heads.mask_head.layers(pooled)
    return True


@_run_heads.register
def _(model: DenseDetector, features: Features, image_size: tuple[int, int]) -> bool:
    model.head([features[name] for name in model.head_in_features])
    return True


@_run_heads.register
def _(model: SemanticSegmentor, features: Features, image_size: tuple[int, int]) -> bool:
    model.sem_seg_head(features)
    return True


@_run_heads.register
def _(model: SparseRCNN, features: Features, image_size: tuple[int, int]) -> bool:
    for _ in model._stages([features[name] for name in model.head_in_features], [image_size]):
        pass
    return True


def parts_of(model: nn.Module) -> list[str]:
    """The keys of the parts, the innermost of the backbone first."""
    keys = [name for name, _ in model.named_children() if name != "backbone"]
    key, found = "backbone", []
    while True:
        found.append(key)
        module = model.get_submodule(key)
        inner = next((name for name in ("bottom_up", "net") if hasattr(module, name)), None)
        if inner is None:
            return found[::-1] + keys
        key = f"{key}.{inner}"


def part_of(name: str, parts: Sequence[str]) -> str:
    """The innermost part that a module or parameter belongs to; "" if to none."""
    inside = (part for part in parts if f"{name}.".startswith(f"{part}."))
    return max(inside, key=len, default="")


@contextmanager
def running_modules(model: nn.Module, *, with_layers: bool = True) -> Iterator[list[str]]:
    """Yields a list of the modules that are running, the innermost last.

    Without layers, the list has only modules that contain others. Layers have no hooks then, which
    would make the fast ones (`vitadapter.layers.fast`) keep as much as PyTorch's.
    """
    running: list[str] = []

    def leave(*_: object) -> None:  # a hook that returns something replaces the module's output
        running.pop()

    handles = []
    for name, module in model.named_modules():
        if not with_layers and (type(module) is nn.Sequential or not list(module.children())):
            continue
        enter = module.register_forward_pre_hook(lambda *_, name=name: running.append(name))
        # Also if it is left early, as activation checkpointing does when it has all it needs.
        handles += [enter, module.register_forward_hook(leave, always_call=True)]
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


def analyze_model(cfg: DictConfig, image_size: tuple[int, int]) -> ModelAnalysis:
    """Counts the parameters of a config's model and the FLOPs of one image, in inference.

    The model is built on the meta device: neither weights nor activations need memory.

    Args:
        cfg: a config with `model`, a detector or segmenter with a `backbone`.
        image_size: (height, width) in pixels.

    Raises:
        ValueError: see `check_pixels`; the model has no backbone, or cannot be built.
    """
    check_pixels(image_size)
    if "backbone" not in cfg.get("model", {}):
        raise ValueError("a config to analyze needs model.backbone, which this one lacks")
    with torch.device("meta"):
        model = build(cfg.model, "model").eval()
    model.to("meta")  # buffers that timm makes of NumPy arrays
    keys = parts_of(model)
    named = {key: f"{key} ({type(model.get_submodule(key)).__name__})" for key in keys}
    counts = {key: [0, 0] for key in ["", *keys]}
    for name, parameter in model.named_parameters():
        count = counts[part_of(name, keys)]
        count[0] += parameter.numel()
        count[1] += parameter.numel() * parameter.requires_grad
    counter, has_heads = _count(model, keys, image_size)
    parts = {}
    for key, (parameters, trained) in counts.items():
        flops = Counter({op: n for (part, op), n in counter.flops.items() if part == key})
        if parameters or flops:
            parts[named.get(key, "other")] = PartCosts(parameters, trained, flops)
    not_counted: Counter[str] = Counter()
    for (_, operator), calls in counter.not_counted.items():
        not_counted[operator] += calls
    return ModelAnalysis(image_size, parts, not_counted, has_heads)


def _count(
    model: nn.Module, keys: Sequence[str], image_size: tuple[int, int]
) -> tuple[FlopCounter, bool]:
    backbone = cast(Backbone, model.backbone)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, ROIPooler):
                setattr(module, name, _OneLevelPooler(child))
    images = ImageList.from_tensors(
        [torch.zeros(3, *image_size, device="meta")],
        backbone.size_divisibility,
        padding_constraints=backbone.padding_constraints,
    ).tensor
    with running_modules(model) as running:
        counter = FlopCounter(lambda: part_of(running[-1], keys) if running else "")
        with torch.no_grad(), torch.device("meta"), counter:
            return counter, _run_heads(model, backbone(images), image_size)
