#!/usr/bin/env python
"""Compares the speed and memory of ViTAdapter with the same model built from common parts.

The reference (benchmarks/reference_backbone.py) has the same weights, Detectron2's ViT, and the
deformable attention in plain PyTorch. Reports CPU and wall seconds of the forward pass and of a
training step (forward and backward), and the bytes kept for the backward pass. All figures are
medians over interleaved rounds. --scaling adds the forward time at four times the pixels. --work
counts kernel launches and bytes instead, as on a GPU, and runs nothing.

Example: %(prog)s --models tiny small --rounds 5 --bf16 --scaling --json backbone.json
"""

import argparse
import copy
import json
import platform
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from detectron2.config import instantiate
from torch import Tensor, nn

from benchmarks.interleaved import interleave, saved_bytes
from benchmarks.reference_backbone import FusedReferenceNet, ReferenceAttention, ReferenceNet
from vitadapter.analysis.fake_run import fake_run
from vitadapter.analysis.work import GPUS, Work, count_work
from vitadapter.engine.compiled_parts import compile_parts
from vitadapter.layers.fast import plain_layers
from vitadapter.model_zoo import get_config
from vitadapter.modeling.backbone import ViTAdapter

Variant = tuple[nn.Module, Callable[[], AbstractContextManager[object]]]
Seconds = dict[str, dict[str, float]]
Works = dict[str, Work]


def build(size: str, all_windows: bool = False, **net: object) -> ViTAdapter:
    """Our model with random weights, without stochastic depth; `net` are settings of its net."""
    cfg = get_config("common/models/vit_adapter.py")[f"vit_adapter_{size}"]
    cfg.net.update(pad_after_qkv=False, layer_scale_init=None, drop_path_rate=0.0, **net)
    if all_windows:
        cfg.net.window_block_indexes = list(range(cfg.net.depth))
    torch.manual_seed(0)
    model = instantiate(cfg)
    for parameter in model.parameters():
        if parameter.abs().max() == 0:  # zeros would leave the attention nothing to do
            nn.init.normal_(parameter, std=0.02)
    return model


def build_reference(
    size: str, kind: type[ReferenceNet] = ReferenceNet, **net: object
) -> ViTAdapter:
    """The reference model with random weights; `net` are settings of its net."""
    cfg = get_config("common/models/vit_adapter.py")[f"vit_adapter_{size}"]
    cfg.net.update(drop_path_rate=0.0, **net)
    cfg.attention = ReferenceAttention
    cfg.net._target_ = kind
    del cfg.net.pad_after_qkv, cfg.net.layer_scale_init
    return instantiate(cfg)


def forward(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Inference."""
    with torch.no_grad():
        return model(images)


def step(model: nn.Module, images: Tensor) -> None:
    """Forward and backward of a training iteration."""
    sum(output.sum() for output in model(images).values()).backward()
    model.zero_grad()


def medians(runs: dict[str, dict[str, Callable[[], object]]], rounds: int, device: str) -> Seconds:
    """Median seconds of each run's kinds, "forward cpu", "forward wall", ..., all interleaved."""
    calls = {(name, kind): run for name, kinds in runs.items() for kind, run in kinds.items()}
    seconds: Seconds = {name: {} for name in runs}
    for (name, kind), turns in interleave(calls, rounds, device, seconds=0).items():
        for clock in ("cpu", "wall"):
            times = (getattr(turn, clock) for turn in turns)
            seconds[name][f"{kind} {clock}"] = statistics.median(times)
    return seconds


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of the outputs, each relative to the largest value."""
    return max(
        float((found[name] - out).abs().max() / out.abs().max()) for name, out in expected.items()
    )


def compiled(model: ViTAdapter) -> ViTAdapter:
    """A copy that runs as with `train.compile`."""
    model = copy.deepcopy(model)
    compile_parts(model)
    return model


def variants(ours: ViTAdapter, args: argparse.Namespace) -> dict[str, Variant]:
    """What is compared with the reference: a model and the context in which it runs."""
    autocast = partial(torch.autocast, args.device, torch.bfloat16)
    models: dict[str, Variant] = {"ours": (ours, nullcontext)}
    if args.bf16:
        models["bf16 autocast"] = (ours, autocast)
        models["bf16 weights"] = (copy.deepcopy(ours).bfloat16(), nullcontext)
    if args.compile:
        models |= {f"{n} compiled": (compiled(m), c) for n, (m, c) in models.items()}
    return models


def compare(size: str, hw: tuple[int, int], args: argparse.Namespace) -> dict[str, object]:
    """All figures of one model at one image size."""
    device = torch.device(args.device)
    ours = build(size)
    reference = build_reference(size)
    reference.load_state_dict(ours.state_dict())
    reference.to(device).eval()
    ours.to(device).eval()
    torch.manual_seed(1)
    images = torch.randn(args.batch, 3, *hw, device=device)
    exact = images[:1, :, :256, :256].double()
    sizes = {"float32": images, "float64, 256x256": exact}

    def outputs(model: nn.Module) -> dict[str, dict[str, Tensor]]:
        return {n: forward(copy.deepcopy(model).to(i.dtype), i) for n, i in sizes.items()}

    def saved(model: nn.Module) -> int:
        return saved_bytes(lambda: model(images), model.parameters())

    found = outputs(ours)
    with plain_layers():
        expected = outputs(reference)
        kept = {"reference": saved(reference.train())}
    differences = {name: difference(found[name], expected[name]) for name in sizes}
    models = {"reference": (reference, plain_layers), **variants(ours.train(), args)}
    kept["ours"] = saved(ours)

    def run(kind: Callable[..., object], variant: Variant) -> None:
        model, context = variant
        with context():
            kind(model, images.to(next(model.parameters()).dtype))

    runs = {
        name: {kind.__name__: partial(run, kind, variant) for kind in (forward, step)}
        for name, variant in models.items()
    }
    return {
        "model": size,
        "image": list(hw),
        "differences": differences,
        "seconds": medians(runs, args.rounds, args.device),
        "saved_megabytes": {name: size / 1e6 for name, size in kept.items()},
    }


def print_rows(result: dict[str, object]) -> None:
    """Prints a line for each implementation, with its ratio to the reference."""
    seconds, saved = result["seconds"], result["saved_megabytes"]
    differences = ", ".join(f"{v:.1e} ({k})" for k, v in result["differences"].items())
    print(f"{result['model']} {'x'.join(map(str, result['image']))}, difference {differences}")
    base = seconds["reference"]
    for name, figures in seconds.items():
        line = f"  {name:22s}"
        for kind, value in figures.items():
            line += f"  {kind} {value:7.3f} s ({value / base[kind]:.2f}x)"
        if name in saved:
            line += f"  saved {saved[name]:6.0f} MB ({saved[name] / saved['reference']:.2f}x)"
        print(line, flush=True)


def measure_scaling(size: str, args: argparse.Namespace) -> dict[str, object]:
    """Compares forward times at four times the pixels, with global blocks and with windows only."""
    device = torch.device(args.device)
    models = {"global blocks": build(size), "windows only": build(size, all_windows=True)}
    sides = (512, 1024)
    runs = {}
    for name, model in models.items():
        model.to(device).eval()
        images = (torch.randn(args.batch, 3, side, side, device=device) for side in sides)
        runs[name] = {f"{i.shape[-1]}": partial(forward, model, i) for i in images}
    seconds = medians(runs, args.rounds, args.device)
    for name, figures in seconds.items():
        growth = (
            figures[f"{sides[1]} {clock}"] / figures[f"{sides[0]} {clock}"]
            for clock in ("cpu", "wall")
        )
        print(f"{size}, 4x the pixels, {name}: cpu {next(growth):.2f}x, wall {next(growth):.2f}x")
    return {"model": size, "scaling": seconds}


def count(size: str, hw: tuple[int, int], batch: int) -> dict[str, object]:
    """The work on a GPU with bfloat16 autocast, of ours and of the reference."""
    counted: dict[str, Works] = {}
    with fake_run():
        images = torch.empty(batch, 3, *hw)
        for name, model, context in (
            ("reference", build_reference(size, FusedReferenceNet), plain_layers()),
            ("ours", build(size), nullcontext()),
        ):
            with context:
                counted[name] = {
                    kind.__name__: count_work(model, partial(kind, model, images))
                    for kind in (forward, step)
                }
    print(f"{size} {hw[0]}x{hw[1]}, batch {batch}, counted with bfloat16 autocast")
    figures = {name: dict(map(_sums, works.items())) for name, works in counted.items()}
    for name, kinds in figures.items():
        for kind, sums in kinds.items():
            base = figures["reference"][kind]
            cells = (f"{k} {v:9.2f} ({v / base[k]:.2f}x)" for k, v in sums.items())
            print(f"  {name:10s} {kind:8s}", *cells, sep="  ", flush=True)
    return {"model": size, "image": list(hw), "batch": batch, "work": figures}


def _sums(item: tuple[str, Work]) -> tuple[str, dict[str, float]]:
    kind, work = item
    times = {f"{name} ms": 1e3 * work.seconds(gpu) for name, gpu in GPUS.items()}
    return kind, {"launches": work.launches, "GB": work.bytes / 1e9, **times}


def parse_size(text: str) -> tuple[int, int]:
    """Parses HxW in pixels."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"a size is HEIGHTxWIDTH in pixels, got {text!r}")
    return int(height), int(width)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("tiny", "small", "base", "large")
    parser.add_argument(
        "--models",
        nargs="+",
        choices=names,
        default=["tiny", "small", "base"],
        help="sizes of the net",
    )
    parser.add_argument(
        "--sizes",
        nargs="*",
        type=parse_size,
        default=[(800, 1216), (512, 512)],
        help="image sizes, HxW",
    )
    parser.add_argument("--batch", type=int, default=1, help="images per batch")
    parser.add_argument("--rounds", type=int, default=3, help="rounds to take medians over")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--bf16", action="store_true", help="also measure autocast and bf16 weights"
    )
    parser.add_argument(
        "--compile", action="store_true", help="also measure ours with what train.compile compiles"
    )
    parser.add_argument(
        "--scaling", action="store_true", help="also compare 512x512 with 1024x1024"
    )
    parser.add_argument(
        "--work", action="store_true", help="count the work on a GPU instead of measuring"
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}"
    print(f"{machine}, {args.device}")
    results: list[dict[str, object]] = [{"machine": machine, "device": args.device}]
    for size in args.models:
        for hw in args.sizes:
            if args.work:
                results.append(count(size, hw, args.batch))
                continue
            results.append(compare(size, hw, args))
            print_rows(results[-1])
        if args.scaling:
            results.append(measure_scaling(size, args))
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
