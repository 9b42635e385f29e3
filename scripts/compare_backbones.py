#!/usr/bin/env python
"""Compares what ViT-Adapter costs with ViTDet and with the paper's plain ViT, over the same net.

Prints two tables for each size: of the backbones with their feature pyramids, which all make p2 to
p6 of 256 channels, and of whole Mask R-CNNs, whose heads are the same. Nothing of it needs a GPU:

- parameters and FLOPs of an image are those of `vitadapter analyze-model`;
- launches, GB read and written, and the least time are those of a GPU with bfloat16 autocast, as
  `vitadapter analyze-model --work` counts them, in inference and in a step (forward and backward);
- GiB is the peak of a GPU's memory with bfloat16 autocast. That of a Mask R-CNN is the one of
  `vitadapter estimate-memory`; a backbone alone has no optimizer.
- With --rounds, CPU seconds in float32 are measured: medians over interleaved rounds. A step of a
  Mask R-CNN is an iteration of training, optimizer included.

Launches and bytes of a Mask R-CNN's inference depend a little on what is suppressed: scores are
random. The overrides are those of ViT-Adapter's experiment; the others have the same net and heads.

Example: %(prog)s --models tiny small base --rounds 3 --time-size 512x800
"""

import argparse
import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from detectron2.modeling import Backbone
from detectron2.structures import ImageList
from omegaconf import DictConfig
from torch import Tensor

from benchmarks.interleaved import interleave
from vitadapter.analysis import Workload, analyze_model, count_work, estimate_memory, step_work
from vitadapter.analysis.allocations import AllocationTracker
from vitadapter.analysis.fake_run import fake_run
from vitadapter.analysis.measurement import PRECISIONS
from vitadapter.analysis.memory import GIB
from vitadapter.analysis.model import parts_of
from vitadapter.analysis.steps import Steps
from vitadapter.analysis.work import GPUS, Work
from vitadapter.commands.arguments import OVERRIDES
from vitadapter.commands.errors import exit_on_errors
from vitadapter.engine.building import build
from vitadapter.engine.overrides import apply_overrides, load_config
from vitadapter.layers.fast import as_on_gpu
from vitadapter.model_zoo import get_config
from vitadapter.visualization.markdown import markdown_table

ADAPTERS = {
    "tiny": "COCO/mask_rcnn_vit_adapter_t_deit_1x",
    "small": "COCO/mask_rcnn_vit_adapter_s_deit_1x",
    "base": "COCO/mask_rcnn_vit_adapter_b_deit_1x",
    "large": "COCO/mask_rcnn_vit_adapter_l_augreg_1x",
}
WHOLES = ("backbone", "Mask R-CNN")
KINDS = ("inference", "step")
DIGITS = {"parameters (M)": 1, "GFLOPs": 1, "launches": 0, "GB": 1}
DIGITS |= {"least ms, H100": 1, "GiB": 2, "CPU s": 2}


@dataclass
class Costs:
    """What a backbone or a detector costs; the dictionaries are by kind, of `KINDS`.

    Attributes:
        parameters: their number.
        flops: of one image; a multiply-add is one.
        work: launches and bytes of a batch.
        peaks: of memory, in bytes, for a batch.
        seconds: of one image, measured; empty if they are not.
    """

    parameters: int
    flops: int
    work: dict[str, Work]
    peaks: dict[str, int]
    seconds: dict[str, float] = field(default_factory=dict)


def peers(size: str, overrides: Sequence[str] = ()) -> dict[str, DictConfig]:
    """The experiments that are compared, by name: Mask R-CNNs over the same net.

    Args:
        size: a key of `ADAPTERS`.
        overrides: of the adapter's experiment.
    """
    adapter = load_config(ADAPTERS[size], overrides)
    net = adapter.model.backbone.bottom_up.net
    vit, vitdet = copy.deepcopy(adapter), copy.deepcopy(adapter)
    vit.model.backbone.bottom_up = get_config("common/models/vit_baseline.py").vit_baseline_tiny
    vit.model.backbone.bottom_up.update(net=net, block_indexes=None)  # those of any depth
    vitdet.model.backbone = get_config("common/models/mask_rcnn_vitdet.py").model.backbone
    vitdet.model.backbone.update(net=net, out_channels=adapter.model.backbone.out_channels)
    return {"ViT": vit, "ViTDet": vitdet, "ViT-Adapter": adapter}


def with_precision(cfg: DictConfig, precision: str) -> DictConfig:
    """A copy of an experiment in a precision, a key of `PRECISIONS`."""
    return apply_overrides(copy.deepcopy(cfg), PRECISIONS[precision])


def passes(backbone: Backbone, workload: Workload) -> dict[str, Callable[[], None]]:
    """Inference and a training step of a backbone on images of zeros."""
    images = ImageList.from_tensors(
        list(torch.zeros(workload.batch, 3, *workload.size)),
        backbone.size_divisibility,
        padding_constraints=backbone.padding_constraints,
    ).tensor

    @torch.no_grad()
    def inference() -> None:
        backbone.eval()(images)

    def step() -> None:
        outputs: Mapping[str, Tensor] = backbone.train()(images)
        torch.stack([out.sum() for out in outputs.values()]).sum().backward()
        backbone.zero_grad()

    return {"inference": inference, "step": step}


def inference_work(cfg: DictConfig, workload: Workload) -> Work:
    """The work of a detector, without pasting the masks that it finds into the images."""
    images = workload.images(cfg)
    with fake_run(), torch.no_grad():
        model = build(cfg.model, "model").eval()
        run = partial(model.inference, images, do_postprocess=False)
        return count_work(model, run, parts=parts_of(model))


def backbone_peaks(cfg: DictConfig, workload: Workload) -> dict[str, int]:
    """The peaks of a GPU's memory in bytes while a backbone runs alone."""
    peaks = {}
    with fake_run(), as_on_gpu():
        backbone = build(cfg.model, "model").backbone
        tracker = AllocationTracker()
        with tracker:
            tracker.label([*backbone.parameters(), *backbone.buffers()], "parameters")
            for kind, run in passes(backbone, workload).items():
                tracker.reset_peak()
                with torch.autocast("cpu", torch.bfloat16):
                    run()
                peaks[kind] = tracker.peak.total()
    return peaks


def count(cfg: DictConfig, workload: Workload) -> dict[str, Costs]:
    """What is known without running a model, of each of `WHOLES`."""
    analysis = analyze_model(cfg, workload.size)
    cfg = with_precision(cfg, "bfloat16")
    works = {"inference": inference_work(cfg, workload), "step": step_work(cfg, workload)}
    memory = estimate_memory(cfg, workload)
    whole_peaks = {"inference": memory.inference.total(), "step": memory.training.total()}
    costs = {}
    for whole, start, peaks in (
        (WHOLES[0], "backbone", backbone_peaks(cfg, workload)),
        (WHOLES[1], "", whole_peaks),
    ):
        parts = [part for name, part in analysis.parts.items() if name.startswith(start)]
        costs[whole] = Costs(
            sum(part.parameters for part in parts),
            sum(part.flops.total() for part in parts),
            {
                kind: Work(call for call in work if call.part.startswith(start))
                for kind, work in works.items()
            },
            peaks,
        )
    return costs


def measure(
    cfgs: Mapping[str, DictConfig], size: tuple[int, int], rounds: int
) -> dict[tuple[str, str, str], float]:
    """CPU seconds of one image, by the name of the experiment, of `WHOLES` and of `KINDS`."""
    workload = Workload(size, 1)
    calls: dict[tuple[str, str, str], Callable[[], None]] = {}
    for name, cfg in cfgs.items():
        torch.manual_seed(0)
        steps = Steps(with_precision(cfg, "float32"), workload.images(cfg))
        for kind, run in passes(steps.model.backbone, workload).items():
            calls[name, WHOLES[0], kind] = run
        whole_runs = (steps.run_inference, steps.run_training)
        for kind, run in zip(KINDS, whole_runs, strict=True):
            calls[name, WHOLES[1], kind] = run
    turns = interleave(calls, rounds, "cpu", seconds=0)
    return {key: statistics.median(turn.cpu for turn in taken) for key, taken in turns.items()}


def figures(cost: Costs) -> dict[str, list[float]]:
    """The figures by column, one or one for each of `KINDS`."""
    works = [cost.work[kind] for kind in KINDS]
    columns = {
        "parameters (M)": [cost.parameters / 1e6],
        "GFLOPs": [cost.flops / 1e9],
        "launches": [work.launches for work in works],
        "GB": [work.bytes / 1e9 for work in works],
        "least ms, H100": [work.seconds(GPUS["H100"]) * 1e3 for work in works],
        "GiB": [cost.peaks[kind] / GIB for kind in KINDS],
    }
    return columns | {"CPU s": [cost.seconds[kind] for kind in KINDS if cost.seconds]}


def table(costs: Mapping[str, Costs], title: str) -> str:
    """A row for each model, and the adapter's figures over ViTDet's."""
    found = {name: figures(cost) for name, cost in costs.items()}
    ours, theirs = found["ViT-Adapter"], found["ViTDet"]
    columns = [column for column, values in ours.items() if values]

    def row(name: str, values: Mapping[str, list[float]], digits: Mapping[str, int]) -> list[str]:
        return [name, *(" / ".join(f"{x:.{digits[c]}f}" for x in values[c]) for c in columns)]

    ratios = {c: [x / y for x, y in zip(ours[c], theirs[c], strict=True)] for c in columns}
    return markdown_table(
        [
            [title, *columns],
            *(row(name, values, DIGITS) for name, values in found.items()),
            row("ViT-Adapter over ViTDet", ratios, dict.fromkeys(columns, 2)),
        ]
    )


def parse_size(text: str) -> tuple[int, int]:
    """Parses HxW in pixels."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"a size is HEIGHTxWIDTH in pixels, got {text!r}")
    return int(height), int(width)


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", choices=ADAPTERS, default=["tiny", "small", "base"], help="nets"
    )
    parser.add_argument(
        "--size", type=parse_size, default=(800, 1280), help="of the images (default: 800x1280)"
    )
    parser.add_argument("--batch", type=int, default=2, help="images of launches, GB and GiB")
    parser.add_argument("--rounds", type=int, default=0, help="to measure; 0 measures nothing")
    parser.add_argument("--time-size", type=parse_size, help="of the image that is measured")
    parser.add_argument("--overrides", nargs="+", default=[], metavar="key=value", help=OVERRIDES)
    args = parser.parse_args(arguments)
    if args.rounds < 0:
        parser.error(f"--rounds must not be negative, got {args.rounds}")
    if args.time_size is not None and args.rounds == 0:
        parser.error("--time-size needs --rounds, without which nothing is measured")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    with exit_on_errors():
        workload = Workload(args.size, args.batch)
        for model in args.models:
            cfgs = peers(model, args.overrides)
            costs = {name: count(cfg, workload) for name, cfg in cfgs.items()}
            if args.rounds > 0:
                measured = measure(cfgs, args.time_size or args.size, args.rounds)
                for (name, whole, kind), seconds in measured.items():
                    costs[name][whole].seconds[kind] = seconds
            for whole in WHOLES:
                rows = {name: cost[whole] for name, cost in costs.items()}
                print(f"{table(rows, f'{model}, {whole}')}\n", flush=True)


if __name__ == "__main__":
    main()
