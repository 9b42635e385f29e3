"""What the commands' arguments have in common: a config by name or file, weights, overrides."""

import argparse
from pathlib import Path

from vitadapter.model_zoo import get_config_path, zoo_address

__all__ = ["CONFIG", "OVERRIDES", "WEIGHTS", "command_parser", "config_file", "weights_of"]

CONFIG = "name of an experiment (`vitadapter zoo` lists them), or a LazyConfig file"
OVERRIDES = "set a key of the config; +key=value adds a key, and ~key deletes one"
WEIGHTS = "checkpoint file or URL, or zoo for the published weights of the experiment"


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


def config_file(config: str) -> Path:
    """The file of a config.

    Args:
        config: a file, or the name of an experiment such as
            "COCO/mask_rcnn_vit_adapter_s_deit_3x".

    Raises:
        ValueError: it is neither.
    """
    if Path(config).is_file():
        return Path(config)
    try:
        return get_config_path(config)
    except ValueError as error:
        raise ValueError(
            f"{config} does not exist or is a folder, and is no experiment: {error}"
        ) from error


def weights_of(config: str, weights: str) -> str:
    """What `train.init_checkpoint` has to be to load the weights of `--weights`.

    Args:
        config: see `config_file`.
        weights: of the command line.

    Raises:
        ValueError: the published weights are wanted, but there are none of this config.
    """
    if weights != "zoo":
        return weights
    try:
        return zoo_address(config)
    except ValueError as error:
        raise ValueError(f"{error} (--weights FILE takes your own)") from error
