"""Builds what a config describes; error messages name the part that is wrong."""

import traceback
from types import TracebackType
from typing import Any, cast

from detectron2.config import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

__all__ = ["build"]


def _failed_at(error: Exception) -> str:
    """The dotted key of the part that failed, relative to the config that was being built."""
    keys, step = [], error.__traceback__
    while isinstance(step, TracebackType):
        frame = step.tb_frame
        if frame.f_code.co_filename == instantiate.__code__.co_filename and "k" in frame.f_locals:
            keys.append(str(frame.f_locals["k"]))
        step = step.tb_next
    return ".".join(keys)


def _described(part: object) -> str:
    """The class of a part of a config and its plain arguments, in one line."""
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
    """Like Detectron2's `instantiate`, but errors say which part of the config they come from.

    Args:
        node: a part of a config.
        name: the dotted key of `node`, for messages.

    Returns:
        What `node` describes; `node` itself if there is nothing to build in it.

    Raises:
        ValueError: a part could not be built. The message names the innermost one, and the type
            and place of the error unless that is a ValueError, which explains itself.
        InterpolationResolutionError: an interpolation refers to a key that does not exist.
        MissingMandatoryValue: a mandatory value ("???") is not set.
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
