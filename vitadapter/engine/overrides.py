"""Configs from the command line: a file, and overrides that refuse a misspelt key."""

import inspect
from collections.abc import Hashable, Mapping, Sequence
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Union, get_args, get_origin

from detectron2.utils.registry import locate
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vitadapter.data.folders import resolve_root
from vitadapter.model_zoo import load_experiment

__all__ = ["apply_overrides", "load_config"]

# Keys that configs of older versions, and Detectron2's own, lack.
_OPTIONAL_KEYS = (
    "train.init_allow_partial",
    "train.accumulate_steps",
    "train.amp.dtype",
    "train.amp.init_scale",
    "train.ema",
    "train.best_checkpoint",
)

# Groups of keys that null switches off.
_MAY_BE_NULL = ("dataloader.evaluator", "train.inference", "train.ema", "train.best_checkpoint")

_IN_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "True or False",
    str: "text",
    NoneType: "null",
}


def _quoted(text: str) -> str:
    """`key=value` with the value quoted, for values like paths that hydra's grammar cannot read."""
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


def _keys(node: DictConfig | ListConfig) -> list[str]:
    if isinstance(node, DictConfig):
        return [str(key) for key in node]
    return [str(index) for index in range(len(node))]


def _child(node: DictConfig | ListConfig, key: str) -> object:
    """The value below a key; an interpolation is followed to what it refers to."""
    return node[int(key)] if isinstance(node, ListConfig) else node[key]


def _all_keys(content: object, prefix: str = "") -> list[str]:
    """Every dotted key of a plain container."""
    if isinstance(content, Mapping):
        items = [(str(key), value) for key, value in content.items()]
    elif isinstance(content, list):
        items = [(str(index), value) for index, value in enumerate(content)]
    else:
        return []
    return [k for key, value in items for k in (prefix + key, *_all_keys(value, f"{prefix}{key}."))]


def _unknown(cfg: DictConfig, key: str) -> ValueError:
    # Not resolved, so that a config whose interpolations do not resolve yet is listed too.
    known = _all_keys(OmegaConf.to_container(cfg, resolve=False))
    known = [k for k in known if not k.endswith("_target_")]
    same_name = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    near = list(dict.fromkeys(same_name[:2] + get_close_matches(key, known, n=3, cutoff=0.5)))
    hint = f"near keys: {', '.join(near)}" if near else f"top-level keys: {', '.join(cfg)}"
    return ValueError(f"the config has no key {key!r} ({hint}); write +{key}=... to add it")


def _parameter(node: object, argument: str) -> inspect.Parameter | None:
    """The parameter that an argument of a lazy call is for, where its signature names one."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return None
    try:
        target = locate(node._target_) if isinstance(node._target_, str) else node._target_
        parameter = inspect.signature(target).parameters.get(argument)
    except (ImportError, TypeError, ValueError):
        return None
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return parameter if parameter is not None and parameter.kind in named else None


def _check_type(parameter: inspect.Parameter, value: object, full_key: str) -> None:
    """Refuses a plain value of another type than the parameter's, where that takes plain values."""
    annotation = parameter.annotation
    is_union = get_origin(annotation) in (Union, UnionType)
    kinds = get_args(annotation) if is_union else (annotation,)
    if not all(isinstance(kind, Hashable) and kind in _IN_WORDS for kind in kinds):
        return
    is_reference = isinstance(value, str) and "${" in value
    is_default = value is None and parameter.default is None
    if is_reference or is_default or type(value) in kinds:
        return
    if type(value) is int and float in kinds:
        return
    words = " or ".join(_IN_WORDS[kind] for kind in kinds)
    raise ValueError(f"{full_key} must be {words}, got {value!r}")


def _check_kind(parent: DictConfig | ListConfig, key: str, value: object, full_key: str) -> None:
    """Refuses text in the place of a number, and a plain value in that of a group of keys."""
    at = key if isinstance(parent, DictConfig) else int(key)
    is_reference = isinstance(value, str) and "${" in value
    if key == "num_classes" and OmegaConf.is_interpolation(parent, at) and not is_reference:
        follows = OmegaConf.to_container(parent, resolve=False)[key]
        raise ValueError(
            f"{full_key} is {follows}, as other parts are that have to agree: set the key that it "
            f"refers to (on your own data dataset.num_classes={value})"
        )
    if OmegaConf.is_interpolation(parent, at) or OmegaConf.is_missing(parent, at):
        return
    below = _child(parent, key)
    if isinstance(value, Mapping) or is_reference or (value is None and full_key in _MAY_BE_NULL):
        return
    parameter = _parameter(parent, key)
    if parameter is not None:
        takes_text = str in (parameter.annotation, *get_args(parameter.annotation))
        if (value is None and parameter.default is None) or (isinstance(value, str) and takes_text):
            return
    if isinstance(below, bool | int | float) and isinstance(value, str):
        kind = "True or False" if isinstance(below, bool) else "a number"
        raise ValueError(f"{full_key} must be {kind}, as {below} is, got {value!r}")
    if not isinstance(below, DictConfig):
        return
    keys = ", ".join(f"{full_key}.{inner}" for inner in list(below)[:3])
    raise ValueError(
        f"{full_key}={'null' if value is None else value} would put a plain value in the place of "
        f"a group of keys ({keys}, ...): set these, or delete the group with ~{full_key}"
    )


def _check_known(cfg: DictConfig, node: object, key: str, value: object, full_key: str) -> None:
    """Refuses a key, or one inside a dict value, that the config would silently gain."""
    if not OmegaConf.is_config(node):
        raise ValueError(
            f"{full_key!r} cannot be set: what is above {key!r} is {node!r}, which holds no keys"
        )
    parameter = _parameter(node, key)
    if parameter is not None:
        _check_type(parameter, value, full_key)
    if key not in _keys(node):
        if full_key not in _OPTIONAL_KEYS and parameter is None:
            raise _unknown(cfg, full_key)
        return
    _check_kind(node, key, value, full_key)
    if isinstance(value, Mapping) and isinstance(below := _child(node, key), DictConfig):
        for inner, inner_value in value.items():
            _check_known(cfg, below, str(inner), inner_value, f"{full_key}.{inner}")


def _parent(cfg: DictConfig, key: str) -> tuple[object, str]:
    *above, last = key.split(".")
    node: object = cfg
    for part in above:
        if not OmegaConf.is_config(node) or part not in _keys(node):
            raise _unknown(cfg, key)
        node = _child(node, part)
    return node, last


def _delete(cfg: DictConfig, key: str, expected: object) -> None:
    parent, last = _parent(cfg, key)
    if not OmegaConf.is_config(parent) or last not in _keys(parent):
        raise _unknown(cfg, key)
    if expected is not None and _child(parent, last) != expected:
        raise ValueError(f"~{key}={expected} does not fit the value {_child(parent, last)!r}")
    del parent[int(last) if isinstance(parent, ListConfig) else last]


def _located(key: str, name: str) -> object:
    """The class of a dotted name, which is to take the place of another class."""
    try:
        return locate(name)
    except ImportError as error:
        raise ValueError(f"{key} must name a class, such as package.Class, got {name!r}") from error


def _set(parent: DictConfig | ListConfig, key: str, value: object) -> None:
    if isinstance(value, Mapping) and key in _keys(parent):
        below = _child(parent, key)
        if isinstance(below, DictConfig):  # also behind an interpolation, which stays one
            below.merge_with(value)
            return
    # What a lazy call builds, `_target_`, is found when it is built.
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

    As Detectron2's `LazyConfig.apply_overrides`, except that a key must exist, be known to the
    training loop, or be an argument that the lazy call above it names in its signature;
    `+key=value` adds any other key and `~key` deletes one. A key below an interpolation changes
    what the interpolation refers to.
    A class, such as that of an attention, is replaced by the dotted name of another.
    A value that hydra's grammar cannot read (a path with "=", parentheses or umlauts) is taken
    as it stands.

    Args:
        cfg: a loaded LazyConfig.
        overrides: applied in this order.

    Returns:
        DictConfig: `cfg`.

    Raises:
        ValueError: a malformed override; an unknown key, of which the message names the nearest
            ones; a value of another type than its parameter's; or a plain value in the place of a
            group of keys.
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


def load_config(config_file: str, overrides: Sequence[str]) -> DictConfig:
    """Runs a LazyConfig file, applies overrides to it, and reads the folder `dataset.root`.

    Args:
        config_file: Python or YAML; either executes what it names.
        overrides: as for :func:`apply_overrides`.

    Raises:
        ValueError: the file is not of this kind, or see :func:`apply_overrides` and
            :func:`~vitadapter.data.folders.resolve_root`. An error of the program that a Python
            file is stays as it is.
    """
    try:
        cfg = load_experiment(config_file)
    except (SyntaxError, YAMLError) as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"--config-file {config_file} cannot be read: {cause}") from error
    return resolve_root(apply_overrides(cfg, overrides), overrides)
