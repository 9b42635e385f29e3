"""The report of `scripts/gpu_check.sh`: report.md, report.json and plots."""

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.sections import Figures, Outcome, read_outcome

__all__ = ["write_report"]

_LINES = 15  # of a log, which are shown of a part that has failed
_MAY_BE_CUT = ("memcheck", "racecheck", "operator", "backbone", "training", "detectors", "compiled")
_STOPPED = ("124", "137")  # the statuses of `timeout`
_COLUMNS: dict[str, dict[str, str]] = {
    "operator": {
        "case": "inputs of ViT-Adapter",
        "implementation": "operator",
        "forward_wall_ms": "forward (ms)",
        "both_wall_ms": "+ backward (ms)",
        "forward_gb_per_s": "forward (GB/s)",
        "both_gb_per_s": "both (GB/s)",
        "forward_ratio": "times as fast, forward",
        "both_ratio": "both",
        "difference": "difference from float32",
    },
    "backbone": {
        "case": "net, precision",
        "implementation": "backbone",
        "forward_ms": "forward (ms)",
        "step_ms": "training step (ms)",
        "forward_peak_mb": "forward, peak (MB)",
        "step_peak_mb": "step, peak (MB)",
        "weights_mb": "weights (MB)",
        "first_calls_s": "first calls (s)",
    },
    "detectors": {
        "case": "model",
        "images_per_s": "training (images/s)",
        "training_peak_mb": "training, peak (MB)",
        "inference_ms": "inference of one image (ms)",
        "inference_peak_mb": "inference, peak (MB)",
        "weights_mb": "weights (MB)",
    },
    "training": {
        "case": "experiment",
        "seconds": "seconds",
        "first_loss": "first losses",
        "last_loss": "last losses",
    },
}
_COLUMNS["compiled"] = _COLUMNS["backbone"]
_TITLES = {
    "operator": "The operator. Ratios are to grid_sample (fused: to softmax and grid_sample)",
    "backbone": "Backbones, two images. Peaks are memory beside the weights",
    "compiled": "Backbones with torch.compile, two images. Its first calls compile",
    "detectors": "Models, two images in training. Peaks are memory beside weights and optimizer",
    "training": "The quickstart with mixed precision. Losses are means over a third of the run",
}


@dataclass
class Section:
    """How a part of the check ended.

    Attributes:
        name: of the part.
        status: its exit status, or why it was left out.
        seconds: that it took.
        log: what it printed.
    """

    name: str
    status: str
    seconds: int
    log: str

    @property
    def state(self) -> str:
        """How it ended, in words."""
        if self.status == "0":
            return "passed"
        if self.status in _STOPPED:
            return "stopped: its time was over" if self.has_failed else "its time was over"
        return f"failed (exit status {self.status})" if self.has_failed else self.status

    @property
    def has_failed(self) -> bool:
        """Whether something is wrong; too little time is only where the rest says nothing."""
        if self.status in _STOPPED:
            return self.name not in _MAY_BE_CUT
        return self.status.isdecimal() and self.status != "0"


def _read_sections(work: Path) -> list[Section]:
    sections = []
    for line in (work / "sections.tsv").read_text().splitlines():
        name, status, seconds = line.split("\t")
        log = work / f"{name}.log"
        text = log.read_text(errors="replace") if log.is_file() else ""
        sections.append(Section(name, status, int(seconds), text))
    return sections


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.2e}" if 0 < abs(value) < 0.01 else f"{value:,.{2 if value < 100 else 0}f}"


def _table(rows: Sequence[Figures], columns: Mapping[str, str]) -> str:
    texts = ("case", "implementation")
    lines = [list(columns.values()), ["---" if key in texts else "---:" for key in columns]]
    lines += [[_cell(row.get(key)) for key in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _measured(outcome: Outcome) -> list[Figures]:
    return [row for row in outcome.rows if "left_out" not in row]


def _part(name: str, outcome: Outcome) -> list[str]:
    rows = _measured(outcome)
    lines = [f"## {_TITLES[name]}", ""]
    for row in [row for row in rows if "copy_gb_per_s" in row]:
        lines += [f"A copy of 256 MiB reads and writes {_cell(row['copy_gb_per_s'])} GB/s.", ""]
        rows.remove(row)
    return [*lines, _table(rows, _COLUMNS[name]) if rows else "Nothing was measured.", ""]


def _failures(sections: Sequence[Section], outcomes: Mapping[str, Outcome]) -> list[str]:
    failures = [
        f"{name}, {case}: {why}" for name, o in outcomes.items() for case, why in o.failed.items()
    ]
    for section in sections:
        # With 1, a part says that its cases have failed, which are named already.
        is_named = section.status == "1" and outcomes.get(section.name, Outcome([])).failed
        if section.has_failed and not is_named:
            failures.append(f"{section.name}: {section.state}")
    return failures


def _machine(sections: Sequence[Section]) -> str:
    """The lines of doctor's report that say where the figures were taken."""
    wanted = ("devices", "PyTorch", "operators", "system")
    log = next((section.log for section in sections if section.name == "environment"), "")
    found = (line.partition(" ") for line in log.splitlines())
    return "\n".join(f"- {name}: {text.strip()}" for name, _, text in found if name in wanted)


def _draw(outcomes: Mapping[str, Outcome], folder: Path) -> list[str]:
    """Draws what there is, and returns the names of the files."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    drawn = []
    bars = {
        "operator": ("forward_wall_ms", "both_wall_ms", "ms"),
        "backbone": ("forward_ms", "step_ms", "ms"),
    }
    for name, (*keys, unit) in bars.items():
        rows = [row for row in _measured(outcomes[name]) if "copy_gb_per_s" not in row]
        if not rows:
            continue
        cases = list(dict.fromkeys(str(row["case"]) for row in rows))
        kinds = list(dict.fromkeys(str(row["implementation"]) for row in rows))
        size = (2 + 0.25 * len(cases) * len(kinds), 7)
        figure, axes = plt.subplots(2, 1, figsize=size, layout="constrained", sharex=True)
        for axis, key in zip(axes, keys, strict=True):
            for i, kind in enumerate(kinds):
                heights = {row["case"]: row[key] for row in rows if row["implementation"] == kind}
                at = [cases.index(str(case)) + 0.8 * (i / len(kinds) - 0.5) for case in heights]
                axis.bar(at, list(heights.values()), 0.8 / len(kinds), align="edge", label=kind)
            axis.set(
                yscale="log", ylabel=f"{key.removesuffix('_ms').replace('_wall', '')} ({unit})"
            )
        axes[1].set_xticks(range(len(cases)), cases, rotation=60, ha="right")
        axes[0].legend()
        figure.savefig(folder / f"{name}.png", dpi=80)
        plt.close(figure)
        drawn.append(f"{name}.png")
    for row in _measured(outcomes["training"]):
        figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
        axis.plot(row["losses"])
        axis.set(xlabel="iteration", ylabel="loss", title=row["case"])
        figure.savefig(folder / "training.png", dpi=80)
        plt.close(figure)
        drawn.append("training.png")
    return drawn


def write_report(work: Path, folder: Path, parts: Sequence[str], dry_run: bool) -> list[str]:
    """Writes report.md, report.json and plots.

    Args:
        work: folder of sections.tsv (name, exit status, seconds), the logs and the outcomes.
        folder: where to write.
        parts: names of those that are measured.
        dry_run: whether the figures mean nothing.

    Returns:
        What has failed, a line each.
    """
    sections = _read_sections(work)
    outcomes = {name: read_outcome(work / f"{name}.json") for name in parts}
    failures = _failures(sections, outcomes)
    try:
        pictures = _draw(outcomes, folder)
    except Exception as error:  # the figures count more
        pictures = []
        failures.append(f"plots: {type(error).__name__}: {error}")
    left_out = {
        f"{name}, {case}": reason
        for name, o in outcomes.items()
        for case, reason in o.left_out.items()
    }
    left_out |= {s.name: s.state for s in sections if s.status != "0" and not s.has_failed}
    report = {
        "date": dt.date.today().isoformat(),
        "dry_run": dry_run,
        "failed": failures,
        "left_out": left_out,
        "sections": [asdict(section) for section in sections],
        "measured": {name: _measured(outcome) for name, outcome in outcomes.items()},
    }
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    text = ["# GPU check", ""]
    if dry_run:
        text += ["A dry run, at toy size on the CPU: its figures mean nothing.", ""]
    text += [f"{report['date']}, {'failed' if failures else 'passed'}", "", _machine(sections), ""]
    states = [{"case": s.name, "state": s.state, "seconds": s.seconds} for s in sections]
    text += [_table(states, {"case": "part", "state": "outcome", "seconds": "seconds"}), ""]
    if failures:
        text += ["## Failed", "", *(f"- {line}" for line in failures), ""]
        for section in [section for section in sections if section.has_failed]:
            log = section.log.splitlines()[-_LINES:]
            text += [f"The end of the log of {section.name}:", "", "```", *log, "```", ""]
    if left_out:
        text += ["## Left out", "", *(f"- {name}: {why}" for name, why in left_out.items()), ""]
    for name, outcome in outcomes.items():
        text += _part(name, outcome)
    text += [f"![{name}]({name})\n" for name in pictures]
    environment = [s.log.strip() for s in sections if s.name == "environment"]
    text += ["## Environment", "", "```", *environment, "```", ""]
    (folder / "report.md").write_text("\n".join(text))
    for line in failures:
        print(f"FAILED {line}")
    print(f"wrote {folder / 'report.md'}")
    return failures
