#!/usr/bin/env python
"""Times the deformable-attention operators against grid_sample and every installed peer.

Rounds are interleaved: each runs every implementation once, so that a busy machine slows all of
them alike. Reported are medians of CPU time (of all threads) and of wall time, ratios (the median
over rounds of grid_sample's time over the implementation's, CPU time on CPUs and wall time on
GPUs), and the bytes that must cross the memory bus per second of wall time, beside the measured
bandwidth of a copy. Writes benchmark_ops.json and benchmark_ops.png.
"""

import argparse
import importlib.util
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl
import torch
from torch import Tensor
from torch.nn import functional as F

from vitadapter.layers import MSDeformAttn, ms_deform_attn, ms_deform_attn_fused

mpl.use("Agg")
from matplotlib import pyplot as plt

SIZES = {"T": (6, 32), "S": (6, 64), "B": (12, 32)}  # heads, head_dim
POINTS = 4
LARGE = 32 * 2**20  # glibc gives larger blocks back, so that they page-fault at every call
Times = dict[str, list[tuple[float, float]]]


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch on the CPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--image", type=int, nargs=2, default=[800, 1216], metavar=("H", "W"))
    parser.add_argument("--uses", nargs="+", default=["injector", "extractor"])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", type=Path, default=Path("output/benchmark_ops"))
    return parser.parse_args(arguments)


# --- problems -----------------------------------------------------------------------------------


def grid(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    return torch.stack([x, y], -1).reshape(-1, 2)


class Problem:
    """Inputs of one attention of ViT-Adapter at its initial offsets, plus noise of a pixel."""

    def __init__(self, use: str, size: str, batch: int, args: argparse.Namespace) -> None:
        heads, head_dim = SIZES[size]
        scales = [(args.image[0] // s, args.image[1] // s) for s in (8, 16, 32)]
        self.shapes = scales if use == "injector" else scales[1:2]
        queries = scales[1:2] if use == "injector" else scales
        reference = torch.cat([grid(*shape) for shape in queries])[None, :, None]
        module = MSDeformAttn(heads * head_dim, heads, len(self.shapes), POINTS)
        taps = (batch, reference.shape[1], heads, len(self.shapes), POINTS)
        torch.manual_seed(0)
        bias = module.sampling_offsets.bias.detach().reshape(*taps[2:], 2)
        offsets = bias + torch.randn(*taps, 2)
        logits = torch.randn(taps)
        sizes = torch.tensor([(w, h) for h, w in self.shapes])[:, None]
        tokens = sum(h * w for h, w in self.shapes)
        dtype = getattr(torch, args.dtype)

        def leaf(tensor: Tensor, dtype: torch.dtype) -> Tensor:
            return tensor.to(args.device, dtype).requires_grad_()

        self.value = leaf(torch.randn(batch, tokens, heads, head_dim), dtype)
        self.reference = reference.to(args.device)
        self.offsets, self.logits = leaf(offsets, dtype), leaf(logits, dtype)
        locations = reference[:, :, None, :, None] + offsets / sizes
        self.locations = leaf(locations, torch.float32)
        self.weights = leaf(logits.flatten(3).softmax(-1).reshape(taps), torch.float32)
        self.grad = torch.randn(batch, taps[1], heads * head_dim).to(args.device, dtype)
        own = (self.value, self.offsets, self.logits, self.grad)
        self.bytes = sum(tensor.numel() * tensor.element_size() for tensor in own)
        largest = max(self.value.numel(), self.grad.numel()) * self.value.element_size()
        self.page_faults = args.device == "cpu" and largest > LARGE


def grid_sample(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """As every project writes it (Deformable DETR's debugging function)."""
    batch, _, heads, head_dim = value.shape
    queries = locations.shape[1]
    samples, first = [], 0
    for level, (height, width) in enumerate(shapes):
        tokens = value[:, first : first + height * width].flatten(2).transpose(1, 2)
        level_grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        samples.append(
            F.grid_sample(
                tokens.reshape(batch * heads, head_dim, height, width),
                level_grid.to(value.dtype),
                align_corners=False,
            )
        )
        first += height * width
    weights = weights.to(value.dtype).transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    output = (torch.stack(samples, -2).flatten(-2) * weights).sum(-1)
    return output.view(batch, heads * head_dim, queries).transpose(1, 2).contiguous()


def grid_sample_fused(problem: Problem) -> Tensor:
    sizes = torch.tensor([(w, h) for h, w in problem.shapes], device=problem.value.device)
    locations = problem.reference[:, :, None, :, None] + problem.offsets / sizes[:, None]
    weights = problem.logits.flatten(3).softmax(-1).reshape(problem.logits.shape)
    return grid_sample(problem.value, problem.shapes, locations, weights)


# --- implementations ----------------------------------------------------------------------------


def implementations(problem: Problem) -> dict[str, tuple[Callable[[], Tensor], bool, str]]:
    """Name -> the call, whether it takes offsets and logits, what it is compared with."""
    p = problem
    unfused = (p.value, p.shapes, p.locations, p.weights)
    fused = (p.value, p.shapes, p.reference, p.offsets, p.logits)
    found = {
        "grid_sample": (lambda: grid_sample(*unfused), False, "grid_sample"),
        "ours": (lambda: ms_deform_attn(*unfused), False, "grid_sample"),
        "softmax + grid_sample": (lambda: grid_sample_fused(p), True, "softmax + grid_sample"),
        "ours, fused": (lambda: ms_deform_attn_fused(*fused), True, "softmax + grid_sample"),
    }
    for name, call in peers(problem).items():
        found[name] = (call, False, "grid_sample")
    return found


def peers(problem: Problem) -> dict[str, Callable[[], Tensor]]:
    """Other projects' operators, where they are installed."""
    p = problem
    shapes = torch.tensor(p.shapes, device=p.value.device)
    counts = shapes.prod(1)
    starts = counts.cumsum(0) - counts
    found: dict[str, Callable[[], Tensor]] = {}
    if importlib.util.find_spec("torch_ms_deform_attn"):
        import torch_ms_deform_attn as peer

        found["torch-ms-deform-attn"] = lambda: peer.ms_deform_attn(
            p.value, shapes, starts, p.locations, p.weights
        )
    if p.value.is_cuda and importlib.util.find_spec("mmcv"):
        from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction as Mmcv

        found["mmcv"] = lambda: Mmcv.apply(p.value, shapes, starts, p.locations, p.weights, 64)
    return found


# --- measuring ----------------------------------------------------------------------------------


def clock(call: Callable[[], object], device: str) -> tuple[float, float]:
    """CPU and wall seconds of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(problem: Problem, rounds: int, device: str) -> dict[str, dict[str, Times]]:
    """Times per pass ("forward", "both") and implementation."""
    p = problem
    times: dict[str, Times] = {"forward": {}, "both": {}}
    calls: list[tuple[str, str, Callable[[], object]]] = []
    for name, (call, fused, _) in implementations(problem).items():
        leaves = [p.value, *((p.offsets, p.logits) if fused else (p.locations, p.weights))]

        def forward(call: Callable[[], Tensor] = call) -> None:
            with torch.no_grad():
                call()

        def both(call: Callable[[], Tensor] = call, leaves: list[Tensor] = leaves) -> None:
            torch.autograd.grad(call(), leaves, p.grad)

        calls += [("forward", name, forward), ("both", name, both)]
    for number in range(rounds + 1):
        for kind, name, function in calls:
            function()  # so that caches and the heap are its own, not its predecessor's
            taken = clock(function, device)
            if number > 0:  # the first round warms up
                times[kind].setdefault(name, []).append(taken)
    return times


def copy_bandwidth(device: str) -> float:
    """Bytes read and written per second by a copy that no cache holds."""
    source = torch.zeros(2**26, device=device)
    target = torch.zeros_like(source)
    wall = min(clock(lambda: target.copy_(source), device)[1] for _ in range(5))
    return 2 * source.numel() * source.element_size() / wall


def rows_of(problem: Problem, label: str, times: dict[str, Times], device: str) -> list[dict]:
    clock_index = 1 if device == "cuda" else 0
    rows = []
    for name, (_, _, baseline) in implementations(problem).items():
        row = {"problem": label, "implementation": name, "baseline": baseline}
        row["page_faults"] = problem.page_faults
        for kind, taken in times.items():
            row[f"{kind}_cpu_ms"] = 1e3 * median(cpu for cpu, _ in taken[name])
            row[f"{kind}_wall_ms"] = 1e3 * median(wall for _, wall in taken[name])
            row[f"{kind}_ratio"] = median(
                a[clock_index] / b[clock_index]
                for a, b in zip(taken[baseline], taken[name], strict=True)
            )
        row["forward_gb_per_s"] = problem.bytes / row["forward_wall_ms"] / 1e6
        rows.append(row)
        print(
            f"{label:16}{'*' if problem.page_faults else ' '} {name:22}"
            f"{row['forward_cpu_ms']:9.2f} {row['both_cpu_ms']:9.2f} "
            f"{row['forward_wall_ms']:9.2f} {row['both_wall_ms']:9.2f} "
            f"{row['forward_ratio']:8.1f} {row['both_ratio']:8.1f} {row['forward_gb_per_s']:7.1f}",
            flush=True,
        )
    return rows


def draw(rows: list[dict], title: str, path: Path) -> None:
    labels = list(dict.fromkeys(row["problem"] for row in rows))
    names = [n for n in dict.fromkeys(row["implementation"] for row in rows) if "grid" not in n]
    figure, axes = plt.subplots(2, 1, figsize=(1.5 + 1.1 * len(labels), 7), layout="constrained")
    for axis, kind in zip(axes, ("forward", "both"), strict=True):
        for i, name in enumerate(names):
            heights = [row[f"{kind}_ratio"] for row in rows if row["implementation"] == name]
            at = [j + (i - (len(names) - 1) / 2) * 0.8 / len(names) for j in range(len(labels))]
            bars = axis.bar(at, heights, 0.8 / len(names), label=name)
            axis.bar_label(bars, fmt="%.0f", fontsize=7)
        axis.set_xticks(range(len(labels)), labels)
        axis.set_ylabel("times as fast as grid_sample")
        axis.set_title("forward" if kind == "forward" else "forward + backward")
    axes[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def main() -> int:
    args = parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("benchmark_ops.py: --device cuda, but PyTorch sees no GPU", file=sys.stderr)
        return 2
    torch.set_num_threads(args.threads)
    bandwidth = copy_bandwidth(args.device)
    capability = torch.ops.vitadapter._cpu_capability() if args.device == "cpu" else ""
    name = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor()
    machine = f"{name or platform.machine()} {capability}, {args.threads} threads, {args.dtype}"
    print(f"{machine}; torch {torch.__version__}; copy {bandwidth / 1e9:.1f} GB/s")
    print(f"{'':43}CPU ms +backward   wall ms +backward   times +backward   GB/s")
    rows = []
    for use in args.uses:
        for size in args.sizes:
            for batch in args.batch:
                problem = Problem(use, size, batch, args)
                times = measure(problem, args.rounds, args.device)
                rows += rows_of(problem, f"{use} {size} x{batch}", times, args.device)
    print("* a tensor over 32 MiB: page faults at every call, for every implementation")
    args.output.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine, "torch": torch.__version__, "copy_gb_per_s": bandwidth / 1e9}
    (args.output / "benchmark_ops.json").write_text(json.dumps(report | {"rows": rows}, indent=1))
    draw(rows, machine, args.output / "benchmark_ops.png")
    print(f"wrote {args.output}/benchmark_ops.json and .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
