"""Configs from the command line: a file and overrides, which may not have misspelt keys."""

import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from types import NoneType
from typing import Any, Literal, cast, get_args, get_origin

from detectron2.utils.registry import locate
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vitadapter import model_zoo
from vitadapter.data.folders import resolve_root
from vitadapter.engine.channels import apply_channels
from vitadapter.engine.checkpoint_config import is_checkpoint, read_config
from vitadapter.engine.settings import check_value, fill_defaults, settings_group

__all__ = ["apply_overrides", "load_config"]

Node = DictConfig | ListConfig


def _quoted(text: str) -> str:
    """`key=value` with the value in quotes, for values that hydra's grammar cannot read."""
    key, _, value = text.partition("=")
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{escaped}'"


def _parse(text: str) -> Override:
    parser = OverridesParser.create()
    key, equals, value = text.partition("=")
    rule = "an override is key=value, +key=value to add a new key or ~key to delete one"
    try:
        override = parser.parse_override(text)
    except HydraException as error:
        if not key or not equals or value[:1] in tuple("[{'\""):
            raise ValueError(f"{rule}, got {text!r} ({error})") from error
        try:
            override = parser.parse_override(_quoted(text))
        except HydraException:
            raise ValueError(f"{rule}, got {text!r} ({error})") from error
    if not override.key_or_group or override.package is not None:
        raise ValueError(f"{rule}, got {text!r}")
    if override.is_sweep_override():
        raise ValueError(
            f"a list is written key=[1,2], and a value with a comma in two pairs of quotes, "
            f"\"{key}='{value}'\", got {text!r}"
        )
    return override


def _keys(node: Node) -> list[str]:
    if isinstance(node, DictConfig):
        return [str(key) for key in node]
    return [str(index) for index in range(len(node))]


def _child(node: Node, key: str) -> object:
    """The value below a key; an interpolation is followed to what it refers to."""
    return node[_index(node, key)]


def _index(node: Node, key: str) -> Any:
    return int(key) if isinstance(node, ListConfig) else key


def _all_keys(content: object, prefix: str = "") -> list[str]:
    """All dotted keys of a plain container."""
    if isinstance(content, Mapping):
        items = [(str(key), value) for key, value in content.items()]
    elif isinstance(content, list):
        items = [(str(index), value) for index, value in enumerate(content)]
    else:
        return []
    return [k for key, value in items for k in (prefix + key, *_all_keys(value, f"{prefix}{key}."))]


def _unknown(cfg: DictConfig, key: str) -> ValueError:
    # Not resolved, since some interpolations may not resolve yet.
    known = _all_keys(OmegaConf.to_container(cfg, resolve=False))
    known = [k for k in known if not k.endswith("_target_")]
    same_name = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    near = list(dict.fromkeys(same_name[:2] + get_close_matches(key, known, n=3, cutoff=0.5)))
    hint = f"near keys: {', '.join(near)}" if near else f"top-level keys: {', '.join(cfg)}"
    return ValueError(f"the config has no key {key!r} ({hint}); write +{key}=... to add it")


def _parameter(node: Node, argument: str, full_key: str) -> inspect.Parameter | None:
    """The declaration of a setting or of an argument of a lazy call; None if there is none."""
    try:
        if group := settings_group(full_key.rpartition(".")[0]):
            return inspect.signature(group).parameters.get(argument)
        target = OmegaConf.select(node, "_target_") if isinstance(node, DictConfig) else None
        target = locate(target) if isinstance(target, str) else target
        parameter = inspect.signature(target).parameters.get(argument) if target else None
    except (ImportError, TypeError, ValueError):
        return None
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return parameter if parameter is not None and parameter.kind in named else None


def _may_be_null(full_key: str, parameter: inspect.Parameter | None) -> bool:
    if parameter is None:
        return full_key == "dataloader.evaluator"  # a run without one does not evaluate
    return parameter.default is None or NoneType in get_args(parameter.annotation)


def _is_reference(value: object) -> bool:
    return isinstance(value, str) and "${" in value


def _check_kind(
    parent: Node, key: str, value: object, full_key: str, parameter: inspect.Parameter | None
) -> None:
    """Refuses text instead of a number, and a plain value instead of a group of keys."""
    at = _index(parent, key)
    if key == "num_classes" and OmegaConf.is_interpolation(parent, at):
        follows = cast(dict[str, object], OmegaConf.to_container(parent, resolve=False))[key]
        raise ValueError(
            f"{full_key} is {follows}, like other parts that have to agree: set the key that it "
            f"refers to (for your own data dataset.num_classes={value})"
        )
    if OmegaConf.is_interpolation(parent, at) or OmegaConf.is_missing(parent, at):
        return
    below = _child(parent, key)
    if isinstance(value, Mapping) or (value is None and _may_be_null(full_key, parameter)):
        return
    annotation = None if parameter is None else parameter.annotation
    kinds = (annotation, *get_args(annotation))
    if isinstance(value, str) and (
        str in kinds
        or any(get_origin(kind) is Literal and value in get_args(kind) for kind in kinds)
    ):
        return
    if isinstance(below, bool | int | float) and isinstance(value, str):
        kind = "True or False" if isinstance(below, bool) else "a number"
        raise ValueError(f"{full_key} must be {kind}, as {below} is, got {value!r}")
    if not isinstance(below, DictConfig):
        return
    keys = ", ".join(f"{full_key}.{inner}" for inner in list(below)[:3])
    raise ValueError(
        f"{full_key}={'null' if value is None else value} would put a plain value in place of "
        f"a group of keys ({keys}, ...): set these, or delete the group with ~{full_key}"
    )


def _check_known(cfg: DictConfig, node: Node, key: str, value: object, full_key: str) -> None:
    """Refuses keys, also those inside a dict value, that the config does not have."""
    parameter = _parameter(node, key, full_key)
    is_checked = not _is_reference(value)
    if is_checked and parameter is not None and not (value is None and parameter.default is None):
        check_value(full_key, parameter.annotation, value)
    if key not in _keys(node):
        if parameter is None:
            raise _unknown(cfg, full_key)
        return
    if is_checked:
        _check_kind(node, key, value, full_key, parameter)
    if isinstance(value, Mapping) and isinstance(below := _child(node, key), DictConfig):
        for inner, inner_value in value.items():
            _check_known(cfg, below, str(inner), inner_value, f"{full_key}.{inner}")


def _parent(cfg: DictConfig, key: str) -> tuple[Node, str]:
    *above, last = key.split(".")
    node: Node = cfg
    for part in above:
        if part not in _keys(node):
            raise _unknown(cfg, key)
        below = _child(node, part)
        if not isinstance(below, Node):
            raise ValueError(
                f"the config cannot have a key {key!r}: its {part!r} is {below!r}, which holds no "
                "keys"
            )
        node = below
    return node, last


def _delete(cfg: DictConfig, key: str, expected: object) -> None:
    parent, last = _parent(cfg, key)
    if last not in _keys(parent):
        raise _unknown(cfg, key)
    if expected is not None and _child(parent, last) != expected:
        raise ValueError(f"~{key}={expected} does not match the value {_child(parent, last)!r}")
    del parent[_index(parent, last)]


def _located(key: str, name: str) -> object:
    """The class of a dotted name, which replaces another class."""
    try:
        return locate(name)
    except ImportError as error:
        raise ValueError(f"{key} must name a class, such as package.Class, got {name!r}") from error


def _set(parent: Node, key: str, value: object) -> None:
    if isinstance(value, Mapping) and key in _keys(parent):
        below = _child(parent, key)
        if isinstance(below, DictConfig):  # also behind an interpolation, which stays one
            below.merge_with(value)
            return
    # The target of a lazy call stays a name until it is built.
    is_class = isinstance(parent, DictConfig) and isinstance(parent.get(key), type)
    if is_class and key != "_target_" and isinstance(value, str):
        value = _located(key, value)
    OmegaConf.update(parent, key, value, merge=True)


def _add(cfg: DictConfig, key: str, value: object) -> None:
    try:
        OmegaConf.update(cfg, key, value, merge=True, force_add=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"+{key}={value} cannot be added: {error}") from error


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Sets values of `cfg` in place from `key=value` strings in hydra's grammar.

    Like Detectron2's `LazyConfig.apply_overrides`, except that a key must exist, be a setting of
    `vitadapter.engine.settings`, or be an argument in the signature of its lazy call.
    `+key=value` adds any other key, and `~key` deletes one. A key below an interpolation changes
    what the interpolation refers to. Where the config has a class, such as that of an attention,
    the dotted name of another class replaces it. A value that hydra's grammar cannot read, such as
    a path with "=", parentheses or umlauts, is taken literally.

    Args:
        cfg: a loaded LazyConfig.
        overrides: applied in this order.

    Returns:
        `cfg`.

    Raises:
        ValueError: a malformed override; an unknown key (the message names the nearest ones); a
            value that the setting or argument does not take; or a plain value instead of a group
            of keys.
    """
    for text in overrides:
        override = _parse(text)
        key, value = override.key_or_group, override.value()
        if override.is_delete():
            _delete(cfg, key, value)
        elif override.is_add() or override.is_force_add():
            _add(cfg, key, value)
        else:
            parent, last = _parent(cfg, key)
            _check_known(cfg, parent, last, value, key)
            _set(parent, last, value)
    return cfg


def load_config(config_file: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Runs a LazyConfig file, fills in settings that it lacks, applies overrides, and what follows
    from `model.pixel_mean` and `dataset.root`.

    Args:
        config_file: Python or YAML, both of which can execute code; the name of an experiment
            of the model zoo, such as "COCO/mask_rcnn_vit_adapter_s_deit_3x"; or a checkpoint that
            carries its config, which is not run: see `read_config`.
        overrides: as for `apply_overrides`.

    Raises:
        ValueError: the file is none of these, or for the reasons of `apply_overrides`,
            `apply_channels` and `resolve_root`. Errors that a Python file raises are passed on.
    """
    try:
        if is_checkpoint(config_file):
            cfg = read_config(config_file)
        else:
            cfg = model_zoo.load_experiment(model_zoo.config_file(config_file))
    except (SyntaxError, YAMLError) as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"--config-file {config_file} cannot be read: {cause}") from error
    fill_defaults(cfg)
    apply_overrides(cfg, overrides)
    apply_channels(cfg)
    return resolve_root(cfg, overrides)
