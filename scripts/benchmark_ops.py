#!/usr/bin/env python
"""Times the deformable-attention operators and modules against their alternatives.

Operators are compared with grid_sample and with every other implementation that can be imported.
The module (including its projections) is compared with one that computes softmax and locations in
PyTorch, also in what it keeps for the backward pass besides inputs and parameters.

Contenders take turns in interleaved rounds. In each turn, a contender makes one untimed call and
then up to 15 timed ones, of which the median counts. The report gives medians of CPU time (of all
threads), wall time and page faults; ratios (the median over rounds of the baseline's time divided
by the contender's: CPU time on CPUs, wall time on GPUs); and the bytes that must cross the memory
bus per second of wall time, beside the measured bandwidth of a copy. Operators whose output or
values exceed 32 MiB have a separate table, because glibc returns such blocks to the system, so that
every contender has page faults at every call. Writes benchmark_ops.json and benchmark_ops.png.
"""

import argparse
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl
import torch

from benchmarks.attention_peers import load_peers
from benchmarks.deformable_attention import SIZES, Contender, ModuleProblem, OperatorProblem
from benchmarks.interleaved import (
    Turn,
    copy_bandwidth,
    interleave,
    ratio,
    saved_bytes,
)

mpl.use("Agg")
from matplotlib import pyplot as plt

PASSES = ("forward", "both")
Row = dict[str, str | float | bool]


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--threads", type=int, default=2, help="PyTorch's threads on the CPU")
    parser.add_argument("--rounds", type=int, default=5, help="rounds to take medians over")
    parser.add_argument(
        "--image",
        type=int,
        nargs=2,
        default=[800, 1216],
        metavar=("H", "W"),
        help="image size in pixels",
    )
    parser.add_argument("--what", nargs="+", choices=["operator", "module"], default=["operator"])
    parser.add_argument("--uses", nargs="+", default=["injector", "extractor"])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--output", type=Path, default=Path("output/benchmark_ops"), help="folder to write to"
    )
    return parser.parse_args(arguments)


def passes(contender: Contender, grad: torch.Tensor) -> dict[str, object]:
    def forward() -> None:
        with torch.no_grad():
            contender.call()

    def both() -> None:
        torch.autograd.grad(contender.call(), contender.leaves, grad)

    return {"forward": forward, "both": both}


def measure(
    problem: OperatorProblem | ModuleProblem,
    contenders: Mapping[str, Contender],
    rounds: int,
    device: str,
    seconds: float = 0.3,
) -> list[Row]:
    """Times contenders in interleaved rounds.

    Args:
        problem: what they compute.
        contenders: those to compare, by name, with their baselines.
        rounds: turns of each.
        device: "cpu" or "cuda".
        seconds: length of a turn, see `interleave`.

    Returns:
        One row per contender.
    """
    calls = {
        (name, kind): call
        for name, contender in contenders.items()
        for kind, call in passes(contender, problem.grad).items()
    }
    turns = interleave(calls, rounds, device, seconds)
    rows = []
    for name, contender in contenders.items():
        row: Row = {"implementation": name, "baseline": contender.baseline}
        for kind in PASSES:
            baseline = turns[contender.baseline, kind]
            row |= summary(kind, turns[name, kind])
            row[f"{kind}_ratio"] = ratio(baseline, turns[name, kind], device)
        if isinstance(problem, ModuleProblem):
            row["saved_mb"] = saved_bytes(contender.call, contender.leaves) / 1e6
        else:
            row["large"] = problem.large and device == "cpu"
            row["forward_gb_per_s"] = problem.bytes / row["forward_wall_ms"] / 1e6
            row["both_gb_per_s"] = problem.bytes_of_both / row["both_wall_ms"] / 1e6
        rows.append(row)
    return rows


def summary(kind: str, turns: list[Turn]) -> Row:
    return {
        f"{kind}_cpu_ms": 1e3 * median(turn.cpu for turn in turns),
        f"{kind}_wall_ms": 1e3 * median(turn.wall for turn in turns),
        f"{kind}_page_faults": median(turn.page_faults for turn in turns),
    }


def print_table(title: str, rows: list[Row], last: str) -> None:
    if not rows:
        return
    print(f"\n{title}\n{'':40}CPU ms +backward   wall ms +backward", end="")
    print(f"    faults +backward  times +backward  {last}")
    for row in rows:
        columns = [f"{row[f'{kind}_cpu_ms']:9.2f}" for kind in PASSES]
        columns += [f"{row[f'{kind}_wall_ms']:9.2f}" for kind in PASSES]
        columns += [f"{row[f'{kind}_page_faults']:9.0f}" for kind in PASSES]
        columns += [f"{row[f'{kind}_ratio']:7.2f}" for kind in PASSES]
        columns.append(f"{row.get('saved_mb', row.get('forward_gb_per_s')):7.1f}")
        print(f"{row['problem']:14} {row['implementation']:22}{' '.join(columns)}")


def draw(rows: list[Row], title: str, path: Path) -> None:
    labels = list(dict.fromkeys(row["problem"] for row in rows))
    names = [n for n in dict.fromkeys(row["implementation"] for row in rows) if "grid" not in n]
    names = [name for name in names if name != "unfused module"]
    figure, axes = plt.subplots(2, 1, figsize=(1.5 + 1.1 * len(labels), 7), layout="constrained")
    for axis, kind in zip(axes, ("forward", "both"), strict=True):
        for i, name in enumerate(names):
            heights = [row[f"{kind}_ratio"] for row in rows if row["implementation"] == name]
            at = [j + (i - (len(names) - 1) / 2) * 0.8 / len(names) for j in range(len(labels))]
            bars = axis.bar(at, heights, 0.8 / len(names), label=name)
            axis.bar_label(bars, fmt="%.0f", fontsize=7)
        axis.set_xticks(range(len(labels)), labels)
        axis.set_ylabel("times as fast as grid_sample or the unfused module")
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
    print(f"{machine}; torch {torch.__version__}; copy {bandwidth / 1e9:.1f} GB/s", flush=True)
    for peer, reason in load_peers(args.device)[1].items():
        print(f"without {peer}: {reason}")
    where = (tuple(args.image), args.device, getattr(torch, args.dtype))
    rows: list[Row] = []
    kinds = {"operator": OperatorProblem, "module": ModuleProblem}
    for kind in (kinds[what] for what in args.what):
        for use in args.uses:
            for size in args.sizes:
                for batch in args.batch:
                    problem = kind(use, size, batch, *where)
                    found = measure(problem, problem.contenders(), args.rounds, args.device)
                    rows += [{"problem": f"{use} {size} x{batch}", **row} for row in found]
    operators = [row for row in rows if "large" in row]
    print_table("operators", [row for row in operators if not row["large"]], "GB/s")
    print_table("operators, a tensor over 32 MiB", [r for r in operators if r["large"]], "GB/s")
    print_table("modules", [row for row in rows if "saved_mb" in row], "MB saved")
    args.output.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine, "torch": torch.__version__, "copy_gb_per_s": bandwidth / 1e9}
    (args.output / "benchmark_ops.json").write_text(json.dumps(report | {"rows": rows}, indent=1))
    draw(rows, machine, args.output / "benchmark_ops.png")
    print(f"wrote {args.output}/benchmark_ops.json and .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
