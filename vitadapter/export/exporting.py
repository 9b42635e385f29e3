"""From a model to a file."""

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from vitadapter.engine.predictor import LazyPredictor
from vitadapter.modeling.backbone import merge_lora
from vitadapter.modeling.inference import TiledInference

from .description import describe
from .formats import FORMATS, Compute, format_of
from .graphs import BackboneGraph, Graph, graph_of
from .programs import program_of

__all__ = ["TOLERANCE", "export"]

# Of a difference, relative to the largest number of an output: float32 rounds differently in
# another order.
TOLERANCE = 1e-3


def export(
    source: LazyPredictor | DictConfig,
    format: str,
    file: str | Path,
    *,
    weights: str | None = None,
    only_backbone: bool = False,
    size: tuple[int, int] | None = None,
    force: bool = False,
) -> float:
    """Writes a model to a file that `ExportedPredictor` and the runtime of its format read.

    The file takes `images` of any size, (B, 3, H, W) uint8 in the model's channel order, and
    normalises and pads them. Detectors take one image (B = 1).

    Args:
        source: the model, or the config of one.
        format: "torch", "onnx", or "tensorrt" (ONNX with the node of TensorRT's plugin, which no
            other runtime can read).
        file: to write; it ends in `.pt2` or `.onnx`.
        weights: of a config; see `LazyPredictor`.
        only_backbone: whether the file returns the feature maps of the backbone.
        size: (height, width) of the images that the file takes; None for any size.
        force: whether to write a file that answers otherwise than the model.

    Returns:
        The largest difference between the answers of the model and of the file, relative to the
        largest number of each output; NaN for "tensorrt", which is not run.

    Raises:
        ValueError: an unknown format or suffix, a missing package, a model that the format cannot
            hold, or a file that would answer otherwise than the model.
    """
    writer = format_of(format)
    path = Path(file)
    if path.suffix != writer.suffix:
        raise ValueError(f"the file of the format {format} must end in {writer.suffix}, got {path}")
    if isinstance(source, DictConfig):
        source = LazyPredictor(source, weights, device="cpu")
    if getattr(source.inference, "tta", None) is not None:
        raise ValueError(
            "test-time augmentation cannot be exported: set train.inference.tta.enabled=False"
        )
    if isinstance(source.inference, TiledInference):
        raise ValueError(
            "a file does not say how images are cut into tiles: set ~train.inference.tiles "
            "and give tiles to ExportedPredictor or to vitadapter predict --tile"
        )
    if isinstance(source.image_format, int):
        raise ValueError(
            f"only models of colours can be exported, got one of {source.image_format} channels"
        )
    # A copy, since parameters without gradients are traced in less time.
    model = copy.deepcopy(merge_lora(source.model)).cpu().requires_grad_(False)
    graph = BackboneGraph(model) if only_backbone else graph_of(model)
    _check_size(size, graph.multiple)
    description = describe(source, graph, size)
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        writer.write(program_of(graph, size), description, partial)
        difference = float("nan")
        if writer is not FORMATS["tensorrt"]:
            difference = _difference(graph, writer.read(partial)[0], size)
            if not (difference <= TOLERANCE or force):
                raise ValueError(
                    f"the exported file must answer as the model within {TOLERANCE}, got "
                    f"{difference:.1e} (--force writes it nevertheless)"
                )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return difference


def _check_size(size: tuple[int, int] | None, multiple: int) -> None:
    if size is not None and any(side < 1 or side % multiple for side in size):
        raise ValueError(
            f"height and width of padded images must be multiples of {multiple} pixels, got {size}"
        )


def _difference(graph: Graph, compute: Compute, size: tuple[int, int] | None) -> float:
    """Compares on images of sizes that the program was not traced with, unless it takes one."""
    generator = torch.Generator().manual_seed(0)
    unit = graph.multiple
    # In the larger one, there are several windows of 14 patches.
    sizes = [size] if size else [(4 * unit, 2 * unit + 1), (9 * unit - 1, 15 * unit)]
    worst = 0.0
    for sides in sizes:
        images = torch.randint(0, 256, (1, 3, *sides), generator=generator, dtype=torch.uint8)
        for value, got in zip(_eager(graph, images), compute(images), strict=True):
            if value.shape != got.shape:
                return float("inf")
            if value.numel() > 0:
                scale = value.abs().max().clamp(min=1e-6)
                worst = max(worst, float((value - got).abs().max() / scale))
    return worst


def _eager(graph: Graph, images: Tensor) -> list[Tensor]:
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, -width % graph.multiple, 0, -height % graph.multiple))
    with torch.no_grad():
        outputs = graph(padded, torch.tensor([height, width]))
    return [
        output[..., :height, :width] if name == "sem_seg" else output
        for name, output in zip(graph.outputs, outputs, strict=True)
    ]
