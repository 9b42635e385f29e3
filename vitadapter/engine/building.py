"""Building what a config describes, with messages that name the part that is wrong."""

import traceback
from types import TracebackType
from typing import Any, cast

from detectron2.config import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

__all__ = ["build"]


def _failed_at(error: Exception) -> str:
    """Dotted key, below the config that was built, of the part whose building failed."""
    keys, step = [], error.__traceback__
    while isinstance(step, TracebackType):
        frame = step.tb_frame
        if frame.f_code.co_filename == instantiate.__code__.co_filename and "k" in frame.f_locals:
            keys.append(str(frame.f_locals["k"]))
        step = step.tb_next
    return ".".join(keys)


def _described(part: object) -> str:
    """What a part of a config is to be built of, as far as it can be read in a line."""
    if not isinstance(part, DictConfig):
        return ""
    values = cast(dict[str, object], OmegaConf.to_container(part, resolve=True))
    plain = {k: v for k, v in values.items() if isinstance(v, str | int | float | None)}
    target = values.get("_target_")
    name = getattr(target, "__qualname__", target)
    plain.pop("_target_", None)
    arguments = ", ".join(f"{key}={value!r}" for key, value in plain.items())
    return f" ({name} with {arguments})" if arguments else f" ({name})"


def build(node: object, name: str) -> Any:
    """As Detectron2's `instantiate`, with errors that say where in the config they come from.

    Args:
        node: a part of a config.
        name: its dotted key, for messages.

    Returns:
        What `node` describes; `node` itself if there is nothing to build in it.

    Raises:
        ValueError: names the innermost part that could not be built and, unless its constructor
            has refused the arguments in its own words, the error and its place.
        InterpolationResolutionError: an interpolation refers to what is not there.
        MissingMandatoryValue: a value is left to be set ("???").
    """
    try:
        return instantiate(node)
    except (InterpolationResolutionError, MissingMandatoryValue):  # they name their key
        raise
    except Exception as error:
        below = _failed_at(error)
        key = f"{name}.{below}" if below else name
        if type(error) is ValueError:
            raise ValueError(f"{key}: {error}") from error
        part = node
        if below and isinstance(node, DictConfig | ListConfig):
            part = OmegaConf.select(node, below)
        place = traceback.extract_tb(error.__traceback__)[-1]
        message = " ".join(str(error).split()) or place.line
        raise ValueError(
            f"{key}{_described(part)} cannot be built: {type(error).__name__}: {message} "
            f"({place.filename}:{place.lineno})"
        ) from error
