"""What the commands' arguments have in common: a config by name or file, weights, overrides."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from vitadapter.engine.checkpoint_config import is_checkpoint
from vitadapter.model_zoo import zoo_address

__all__ = [
    "CONFIG",
    "OVERRIDES",
    "WEIGHTS",
    "WEIGHTS_OR_EXPORTED",
    "DefaultsHelpFormatter",
    "check_exported_overrides",
    "command_parser",
    "named",
    "split_overrides",
    "weights_of",
]

_T = TypeVar("_T")

CONFIG = (
    "name of an experiment (`vitadapter zoo` lists them), a LazyConfig file, or a checkpoint of a "
    "run, which carries its config"
)
OVERRIDES = "set a key of the config; +key=value adds a key, and ~key deletes one"
WEIGHTS = (
    "checkpoint file or URL, or zoo for the published weights of the experiment, or those of the "
    "checkpoint in place of a config"
)
WEIGHTS_OR_EXPORTED = f"{WEIGHTS}; or a file of `vitadapter export`"


class DefaultsHelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults of the options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default not in (None, False, [])
        return super()._get_help_string(action) if has_default else action.help


def command_parser(prog: str, description: str, examples: str) -> argparse.ArgumentParser:
    """A parser whose first argument is a config.

    Args:
        prog: name of the command in messages.
        description: what it does.
        examples: shown below the options.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config_file", metavar="CONFIG", help=CONFIG)
    return parser


def split_overrides(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tells files from the overrides behind them, which an option with several values takes too.

    Returns:
        The files and folders, and the overrides: what looks like one, and does not exist.
    """
    files: list[str] = []
    overrides: list[str] = []
    for value in given:
        is_override = "=" in value or (value.startswith("~") and "/" not in value)
        (overrides if is_override and not Path(value).exists() else files).append(value)
    return files, overrides


def named(runs: Iterable[tuple[str, _T]]) -> dict[str, _T]:
    """Runs by their names.

    Raises:
        ValueError: a name is empty, or two are equal.
    """
    found: dict[str, _T] = {}
    for name, run in runs:
        if not name.strip():
            raise ValueError(f"each run needs a name for tables and figures, got {name!r}")
        if name in found:
            raise ValueError(f"the names of runs must differ, got {name!r} twice")
        found[name] = run
    return found


def check_exported_overrides(overrides: Sequence[str]) -> None:
    """Refuses overrides that an exported file in place of weights cannot obey.

    Raises:
        ValueError: one of them changes the model or how it runs.
    """
    for text in overrides:
        key = text.lstrip("+~").partition("=")[0]
        if key.startswith(("model.", "train.ema.", "train.inference.")):
            raise ValueError(f"an exported file holds its model and settings: leave out {text}")


def weights_of(config: str, weights: str, overrides: Sequence[str]) -> str:
    """What `train.init_checkpoint` has to be to load the weights of `--weights`.

    Args:
        config: see `load_config`.
        weights: of the command line.
        overrides: of the config.

    Raises:
        ValueError: the published weights are wanted, but there are none of this config; or an
            override names others.
    """
    named = [text for text in overrides if text.lstrip("+~").startswith("train.init_checkpoint")]
    if named:
        raise ValueError(
            f"--weights {weights} is what is loaded: in place of {named[0]}, give --weights FILE"
        )
    if weights != "zoo":
        return weights
    if is_checkpoint(config):
        return config
    try:
        return zoo_address(config)
    except ValueError as error:
        raise ValueError(f"{error} (--weights FILE takes your own)") from error
