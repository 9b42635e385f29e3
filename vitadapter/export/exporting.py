"""From a model to a file."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from vitadapter.data.image_files import read_image
from vitadapter.engine.predictor import LazyPredictor
from vitadapter.modeling.backbone import merge_lora
from vitadapter.modeling.inference import TiledInference

from .description import describe
from .formats import FORMATS, Compute, Quantizing, format_of
from .graphs import BackboneGraph, Graph, graph_of
from .precision import name_of, tolerance_of
from .predictor import ExportedPredictor
from .programs import program_of
from .verification import Verify

__all__ = ["export"]


def export(
    source: LazyPredictor | DictConfig | str | Path,
    format: str,
    file: str | Path,
    *,
    weights: str | None = None,
    only_backbone: bool = False,
    size: tuple[int, int] | None = None,
    precision: torch.dtype = torch.float32,
    calibration: Sequence[Path] = (),
    verify: Sequence[Verify] = (),
    force: bool = False,
) -> float:
    """Writes a model to a file that `ExportedPredictor` and the runtime of its format read.

    The file takes `images` of any size, (B, 3, H, W) uint8 in the model's channel order, and
    normalises and pads them. Detectors take one image (B = 1).

    Args:
        source: the model, the config of one, or a checkpoint that carries its config.
        format: "torch", "aoti" (machine code of AOTInductor), "onnx", "openvino", or "tensorrt"
            (ONNX with the node of TensorRT's plugin, which no other runtime can read).
        file: to write; it ends in `.pt2`, `.onnx` or, for OpenVINO, `.xml`, beside which a file
            that ends in `.bin` has the weights.
        weights: of a config or checkpoint; see `LazyPredictor`.
        only_backbone: whether the file returns the feature maps of the backbone.
        size: (height, width) of the images that the file takes; None for any size.
        precision: what matrix products and convolutions compute in: `torch.float32`, or, if the
            format can hold it, `torch.float16`, `torch.bfloat16` or `torch.int8`.
        calibration: image files, for int8 alone: the range of numbers in the model is learned of
            them. A hundred of those that the model was trained for are enough.
        verify: further comparisons with the model, such as `verify_on_images`.
        force: whether to write a file that answers otherwise than the model.

    Returns:
        The largest difference between the answers of the model and of the file, relative to the
        largest number of each output; for detectors in other precisions than float32, whose numbers
        of detections may differ, the mean difference of scores. NaN for "tensorrt", which is not
        run.

    Raises:
        ValueError: an unknown format or suffix, a missing package, a model or a precision that the
            format cannot hold, int8 without images, or a file that would answer otherwise than the
            model.
    """
    writer = format_of(format)
    path = Path(file)
    if path.suffix != writer.suffix:
        raise ValueError(f"the file of the format {format} must end in {writer.suffix}, got {path}")
    _check_precision(format, precision, calibration)
    if only_backbone and verify:
        raise ValueError("a backbone alone has no answers to compare: leave out verify")
    source = _predictor_of(source, weights)
    # A copy, since parameters without gradients are traced in less time.
    model = copy.deepcopy(merge_lora(source.model)).cpu().requires_grad_(False)
    graph = BackboneGraph(model) if only_backbone else graph_of(model)
    _check_size(size, graph.multiple)
    _check_weights(graph.model.backbone if only_backbone else model, format)
    description = describe(source, graph, size, precision)
    with _written_whole(path, (*writer.companions, writer.suffix)) as partial:
        program = program_of(graph, size)
        if isinstance(writer, Quantizing) and precision == torch.int8:
            records = (source.preprocess(read_image(str(image), "BGR")) for image in calibration)
            images = [record["image"][None] for record in records]
            writer.write_int8(program, description, partial, images)
        else:
            writer.write(program, description, partial)
        if writer is FORMATS["tensorrt"]:
            return float("nan")
        difference = _difference(graph, writer.read(partial)[0], size, precision)
        reasons = _reasons(difference, precision)
        reasons += [
            text for each in verify for text in each(source, ExportedPredictor(partial)).reasons
        ]
        if reasons and not force:
            raise ValueError(
                f"the file does not answer as the model: {'; '.join(reasons)} (--force writes it "
                "nevertheless)"
            )
    return difference


def _predictor_of(
    source: LazyPredictor | DictConfig | str | Path, weights: str | None
) -> LazyPredictor:
    """The model to export; raises ValueError for one that runs as no file can."""
    if isinstance(source, DictConfig | str | Path):
        source = LazyPredictor(source, weights, device="cpu")
    elif weights is not None:
        raise ValueError(f"the model has weights already: leave out weights, got {weights!r}")
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
    return source


@contextmanager
def _written_whole(path: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """A file to write, which with its companions takes the place of another if nothing fails."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        yield partial
        for suffix in suffixes:
            partial.with_suffix(suffix).replace(path.with_suffix(suffix))
    finally:
        for suffix in suffixes:
            partial.with_suffix(suffix).unlink(missing_ok=True)


def _check_precision(format: str, precision: torch.dtype, calibration: Sequence[Path]) -> None:
    writer, name = format_of(format), name_of(precision)
    if precision not in writer.precisions:
        known = ", ".join(map(name_of, writer.precisions))
        raise ValueError(f"the format {format} can hold the precisions {known}, got {name}")
    if (precision == torch.int8) != bool(calibration):
        raise ValueError(
            "images to calibrate with are needed for int8, and for no other precision, got "
            f"{len(calibration)} images for {name}"
        )


def _check_size(size: tuple[int, int] | None, multiple: int) -> None:
    if size is not None and any(side < 1 or side % multiple for side in size):
        raise ValueError(
            f"height and width of padded images must be multiples of {multiple} pixels, got {size}"
        )


def _check_weights(part: nn.Module, format: str) -> None:
    size = sum(tensor.nbytes for tensor in (*part.parameters(), *part.buffers()))
    limit = format_of(format).max_bytes
    if limit is not None and size > limit:
        raise ValueError(
            f"a file of the format {format} holds weights of at most {limit / 2**30:.2f} GiB, the "
            f"model has {size / 2**30:.2f} GiB: choose torch or aoti"
        )


def _reasons(difference: float, precision: torch.dtype) -> list[str]:
    """Why a file with this difference does not answer as the model; nothing if it does."""
    allowed = tolerance_of(precision).outputs
    if difference <= allowed:
        return []
    return [f"outputs for noise must agree within {allowed:g}, got {difference:.1e}"]


def _difference(
    graph: Graph, compute: Compute, size: tuple[int, int] | None, precision: torch.dtype
) -> float:
    """Compares on images of sizes that the program was not traced with, unless it takes one."""
    generator = torch.Generator().manual_seed(0)
    unit = graph.multiple
    # In the larger one, there are several windows of 14 patches.
    sizes = [size] if size else [(4 * unit, 2 * unit + 1), (9 * unit - 1, 15 * unit)]
    compare = _largest_difference
    if precision != torch.float32 and "boxes" in graph.outputs:
        compare = _difference_of_scores
    worst = 0.0
    for sides in sizes:
        images = torch.randint(0, 256, (1, 3, *sides), generator=generator, dtype=torch.uint8)
        worst = max(worst, compare(_eager(graph, images), list(compute(images))))
    return worst


def _largest_difference(expected: list[Tensor], found: list[Tensor]) -> float:
    """Returns the largest difference, relative to the largest number of an output."""
    worst = 0.0
    for value, got in zip(expected, found, strict=True):
        if value.shape != got.shape:
            return float("inf")
        if value.numel() > 0:
            scale = value.abs().max().clamp(min=1e-6)
            worst = max(worst, float((value - got).abs().max() / scale))
    return worst


def _difference_of_scores(expected: list[Tensor], found: list[Tensor]) -> float:
    """Returns the mean difference of the sorted scores; those that one has not are 0."""
    best = [outputs[1].sort(descending=True).values for outputs in (expected, found)]
    number = max(map(len, best))
    scores = [F.pad(of_one, (0, number - len(of_one))) for of_one in best]
    return float((scores[0] - scores[1]).abs().sum() / max(number, 1))


def _eager(graph: Graph, images: Tensor) -> list[Tensor]:
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, -width % graph.multiple, 0, -height % graph.multiple))
    with torch.no_grad():
        outputs = graph(padded, torch.tensor([height, width]))
    return [
        output[..., :height, :width] if name == "sem_seg" else output
        for name, output in zip(graph.outputs, outputs, strict=True)
    ]
