#!/usr/bin/env python
"""Trains several settings with several seeds each, and prints mean and spread of their metrics.

A setting is written as "NAME: CONFIG [overrides]". Running the script again continues where it
stopped, and runs that are finished are not repeated. OUTPUT/table.md has the table.

Example: %(prog)s --output output/interactions --seeds 1 2 3 --metrics bbox/AP segm/AP \\
    --setting "plain ViT: Digits/mask_rcnn_vit_t" \\
    --setting "N = 2: Digits/mask_rcnn_vit_adapter_t model.backbone.bottom_up.num_interactions=2" \\
    --setting "N = 4: Digits/mask_rcnn_vit_adapter_t" --all train.max_iter=300
"""

import argparse
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vitadapter.visualization.markdown import markdown_table
from vitadapter.visualization.metrics_file import read_metrics

_TRAIN = Path(__file__).with_name("lazyconfig_train_net.py")


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--setting",
        dest="settings",
        action="append",
        required=True,
        metavar="'NAME: CONFIG [overrides]'",
        help="give it once for each setting",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder of all runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="train.seed")
    parser.add_argument(
        "--metrics", nargs="+", default=["bbox/AP"], help="names of scalars in metrics.json"
    )
    parser.add_argument("--all", nargs="+", default=[], help="overrides of all settings")
    return parser.parse_args(arguments)


def read_settings(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Config and overrides by name.

    Raises:
        ValueError: a setting has no name or no config, or the names of two lead to one folder.
    """
    settings: dict[str, list[str]] = {}
    for argument in arguments:
        name, _, words = argument.partition(":")
        if not folder_name(name) or not words.strip():
            raise ValueError(f"a setting must be 'NAME: CONFIG [overrides]', got {argument!r}")
        if folder_name(name) in map(folder_name, settings):
            raise ValueError(f"the names of settings must differ, got {name!r} twice")
        settings[name.strip()] = shlex.split(words)
    return settings


def folder_name(name: str) -> str:
    """The name of a setting with nothing but letters, digits and underscores."""
    return re.sub(r"\W+", "_", name).strip("_").lower()


def train(words: Sequence[str], overrides: Sequence[str], folder: Path, seed: int) -> None:
    """Trains one setting with one seed unless that is done.

    Raises:
        subprocess.CalledProcessError: the training failed; its log is in the folder.
    """
    done = folder / "done"
    if done.exists():
        return
    config, *own = words
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(_TRAIN), "--resume", "--config-file", config, *own, *overrides]
    command += [f"train.seed={seed}", f"train.output_dir={folder}"]
    with (folder / "console.txt").open("a") as console:
        subprocess.run(command, check=True, stdout=console, stderr=subprocess.STDOUT)
    done.touch()


def table(folders: Mapping[str, Sequence[Path]], metrics: Sequence[str]) -> str:
    """Mean and standard deviation over the seeds, and the single values; "-" if not measured."""
    rows = [["setting", "runs", *(head for m in metrics for head in (m, "each"))]]
    for name, runs in folders.items():
        finished = [read_metrics(run) for run in runs if (run / "done").exists()]
        row = [name, str(len(finished))]
        for metric in metrics:
            values = [value for run in finished if (value := run.last(metric)) is not None]
            mean = f"{statistics.mean(values):.1f}" if values else "-"
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            row += [mean + spread, " ".join(f"{value:.1f}" for value in values)]
        rows.append(row)
    return markdown_table(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    try:
        settings = read_settings(args.settings)
        folders = {
            name: [args.output / folder_name(name) / f"seed{seed}" for seed in args.seeds]
            for name in settings
        }
        for index, seed in enumerate(args.seeds):
            for name, words in settings.items():
                print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
                train(words, args.all, folders[name][index], seed)
                (args.output / "table.md").write_text(table(folders, args.metrics) + "\n")
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    print(table(folders, args.metrics))


if __name__ == "__main__":
    main()
