"""From a model to a file."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

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
    full_size: bool = False,
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
        full_size: whether the last part is inside the file too, which then takes a second input,
            `output_size`, and returns answers for an image of that (height, width): the boxes and
            pasted masks (N, height, width) of an R-CNN, or what a Mask2Former makes of its queries,
            among it the map of panoptic segments.
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
        FileNotFoundError: the folder of the file does not exist.
    """
    writer = format_of(format)
    path = Path(file)
    if path.suffix != writer.suffix:
        raise ValueError(f"the file of the format {format} must end in {writer.suffix}, got {path}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a file to write")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of {path} does not exist")
    _check_precision(format, precision, calibration)
    _check_parts(format, only_backbone, full_size, verify)
    source = _predictor_of(source, weights)
    # A copy, since parameters without gradients are traced in less time.
    model = copy.deepcopy(merge_lora(source.model)).cpu().requires_grad_(False)
    graph = BackboneGraph(model) if only_backbone else graph_of(model, full_size=full_size)
    _check_size(size, graph.multiple)
    if precision == torch.int8:
        _check_weights(graph.model.backbone if only_backbone else model, format)
    description = describe(source, graph, size, precision)
    with _written_whole(path, writer.companions) as partial:
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
    """A file to write, which with its companions takes the place of another if nothing fails.

    It has its name in a folder of its own, since files name their companions. Files that do not
    belong together never stand beside each other: the old file goes before its companions do.

    Args:
        path: of the file.
        suffixes: of its companions, whether or not they are written.
    """
    with TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
        partial = Path(folder, path.name)
        yield partial
        path.unlink(missing_ok=True)
        for suffix in suffixes:
            path.with_suffix(suffix).unlink(missing_ok=True)
            if (companion := partial.with_suffix(suffix)).exists():
                companion.replace(path.with_suffix(suffix))
        partial.replace(path)


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


def _check_parts(
    format: str, only_backbone: bool, full_size: bool, verify: Sequence[Verify]
) -> None:
    if only_backbone and verify:
        raise ValueError("a backbone alone has no answers to compare: leave out verify")
    if only_backbone and full_size:
        raise ValueError("a backbone alone has no last part: leave out full_size (--full-size)")
    if verify and format_of(format) is FORMATS["tensorrt"]:
        raise ValueError(
            "a file for TensorRT has a node that only TensorRT can run, so that its answers cannot "
            "be compared: leave out verify (--verify, --verify-dataset)"
        )
    if full_size and format_of(format) is FORMATS["tensorrt"]:
        raise ValueError(
            "TensorRT needs the range of each size that is an input as a number, which no builder "
            "here gives: leave out full_size (--full-size) and paste masks outside of the engine"
        )


def _check_size(size: tuple[int, int] | None, multiple: int) -> None:
    if size is not None and any(side < 1 or side % multiple for side in size):
        raise ValueError(
            f"height and width of padded images must be multiples of {multiple} pixels, got {size}"
        )


def _check_weights(part: nn.Module, format: str) -> None:
    size = sum(tensor.nbytes for tensor in (*part.parameters(), *part.buffers()))
    writer = format_of(format)
    if isinstance(writer, Quantizing) and size > writer.max_int8_bytes:
        raise ValueError(
            f"ONNX Runtime quantises weights of at most {writer.max_int8_bytes / 2**30:.2f} GiB, "
            f"the model has {size / 2**30:.2f} GiB: choose another precision than int8"
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
    if precision != torch.float32 and any(map(_are_scores, graph.outputs)):
        compare = _difference_of_scores
    worst = 0.0
    for height, width in sizes:
        images = torch.randint(
            0, 256, (1, 3, height, width), generator=generator, dtype=torch.uint8
        )
        output_size = (height + 7, 2 * width) if graph.full_size else None
        expected, found = (
            dict(zip(graph.outputs, outputs, strict=True))
            for outputs in (_eager(graph, images, output_size), compute(images, output_size))
        )
        worst = max(worst, compare(expected, found))
    return worst


def _are_scores(name: str) -> bool:
    return name in ("scores", "segment_scores")


def _largest_difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    """Returns the largest difference, relative to the largest number of an output.

    Of masks, classes and segments, it is the share of those that differ.
    """
    worst = 0.0
    for name, value in expected.items():
        got = found[name]
        if value.shape != got.shape:
            return float("inf")
        if value.numel() > 0 and not value.is_floating_point():
            worst = max(worst, float((value != got).float().mean()))
        elif value.numel() > 0:
            scale = value.abs().max().clamp(min=1e-6)
            worst = max(worst, float((value - got).abs().max() / scale))
    return worst


def _difference_of_scores(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    """Returns the mean difference of the sorted scores; those that one has not are 0."""
    worst = 0.0
    for name in filter(_are_scores, expected):
        best = [outputs[name].sort(descending=True).values for outputs in (expected, found)]
        number = max(map(len, best))
        scores = [F.pad(of_one, (0, number - len(of_one))) for of_one in best]
        worst = max(worst, float((scores[0] - scores[1]).abs().sum() / max(number, 1)))
    return worst


def _eager(graph: Graph, images: Tensor, output_size: tuple[int, int] | None) -> Sequence[Tensor]:
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, -width % graph.multiple, 0, -height % graph.multiple))
    asked = [] if output_size is None else [torch.tensor(output_size)]
    with torch.no_grad():
        outputs = graph(padded, torch.tensor([height, width]), *asked)
    if graph.full_size:
        return outputs
    return [
        output[..., :height, :width] if name == "sem_seg" else output
        for name, output in zip(graph.outputs, outputs, strict=True)
    ]
