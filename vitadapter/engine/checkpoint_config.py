"""The config and the names of classes that a run's checkpoints carry, so that they suffice.

The config is YAML, as `LazyConfig.save` writes it. `LazyConfig.load` would run whatever the text
asks for; here, a config may only name parts of models, data sets and optimizers.
"""

import dataclasses
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, cast

import yaml
from detectron2.config.instantiate import dump_dataclass
from detectron2.data.catalog import Metadata
from omegaconf import DictConfig, OmegaConf, SCMode
from omegaconf.errors import OmegaConfBaseException

from vitadapter.checkpoint.archives import CHECKPOINT_SUFFIXES
from vitadapter.checkpoint.reading import is_of_run, read_checkpoint_file
from vitadapter.checkpoint.sharded import SHARDED_SUFFIX
from vitadapter.checkpoint.sources import fetch, is_remote
from vitadapter.engine.settings import expand_home, fill_defaults

__all__ = [
    "carried_classes",
    "class_entries",
    "config_from_text",
    "config_to_text",
    "is_checkpoint",
    "read_config",
]

Plain = dict[Any, Any]

# Of these packages, every public class: building one runs no text and loads no pickle.
_CLASSES_OF = (
    *(f"vitadapter.{n}" for n in ("data", "evaluation", "layers", "modeling", "ops", "solver")),
    *("vitadapter.engine.inference", "vitadapter.engine.writers"),
    *(f"detectron2.{n}" for n in ("data", "evaluation", "layers", "modeling", "solver")),
    *("detectron2.structures", "detectron2.projects.point_rend"),
    *("torch.nn", "torch.optim", "torchvision.ops", "timm.layers", "timm.models"),
    *("fvcore.common.param_scheduler", "pycocotools.cocoeval"),
)
# Of these, every public function. Others' functions read pickles, such as those of proposals.
_FUNCTIONS_OF = (
    *(f"vitadapter.{n}" for n in ("data", "evaluation", "layers", "modeling", "ops", "solver")),
    *("torch.nn.functional", "torch.nn.init"),
)
_FUNCTIONS = {
    f"detectron2.{name}"
    for name in (
        "data.build.build_detection_test_loader",
        "data.build.build_detection_train_loader",
        "solver.build.get_default_optimizer_params",
    )
}
_STATIC_METHODS_OF = ("vitadapter.layers", "vitadapter.modeling", "detectron2.modeling")
# They write files, or hand what they get to another framework.
_EXCLUDED = (
    *("vitadapter.data.folders", "vitadapter.evaluation.detection_analysis"),
    *("vitadapter.evaluation.tide", "detectron2.modeling.mmdet_wrapper"),
)
_RULE = (
    "a config inside a checkpoint may only name public classes and functions of models, data sets, "
    "evaluators and optimizers in vitadapter, detectron2, torch.nn, torch.optim, torchvision.ops, "
    "timm, fvcore and pycocotools"
)
# The largest of our experiments has 13 thousand; PyYAML reads about 5 thousand in a second.
_MOST_CHARACTERS = 2**16
_NAME = "tag:yaml.org,2002:python/name:"
_TUPLE = "tag:yaml.org,2002:python/tuple"
_PARTIAL = "tag:yaml.org,2002:python/object/apply:functools.partial"
# A reference to another key. Other interpolations call functions, which can make new lazy calls.
_REFERENCE = re.compile(r"\$\{[\w.\[\]]+\}")
# Overrides of test-time augmentation; a name among them could become a class.
_KEY = re.compile(r"[~+]{0,2}\w+(\.\w+)*")
_PLAIN_VALUE = re.compile(r"(true|false|null|[-+]?\d+(\.\d*)?(e[-+]?\d+)?)?", re.IGNORECASE)
_NAMES = ("thing_classes", "stuff_classes")
_IDS = ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")


def _is_in(module: object, packages: tuple[str, ...]) -> bool:
    return isinstance(module, str) and any(
        module == package or module.startswith(f"{package}.") for package in packages
    )


def _is_allowed(found: object) -> bool:
    """Whether a config may have this object, wherever it was found."""
    module = getattr(found, "__module__", None)
    if _is_in(module, _EXCLUDED):
        return False
    if isinstance(found, type):
        return _is_in(module, _CLASSES_OF)
    if not isinstance(found, FunctionType):
        return False
    owner, _, name = found.__qualname__.rpartition(".")
    if owner:  # such as ResNet.make_stage
        kind = getattr(sys.modules.get(found.__module__), owner, None)
        is_static = isinstance(inspect.getattr_static(kind, name, None), staticmethod)
        return is_static and _is_in(module, _STATIC_METHODS_OF)
    return _is_in(module, _FUNCTIONS_OF) or f"{module}.{name}" in _FUNCTIONS


def _named(name: str) -> Callable[..., Any]:
    """The class or function of a dotted name.

    Raises:
        ValueError: it is none that a config inside a checkpoint may name, or does not exist.
    """
    start = next((p for p in _CLASSES_OF if name.startswith(f"{p}.")), None)
    parts = name.removeprefix(f"{start}.").split(".")
    if start is None or not all(part.isidentifier() and part[0] != "_" for part in parts):
        raise ValueError(f"{_RULE}, got {name:.100}")
    try:
        found: object = importlib.import_module(start)
        for part in parts:
            if not isinstance(found, ModuleType) or hasattr(found, part):
                found = getattr(found, part)
            elif _is_in(found.__name__, _CLASSES_OF):
                found = importlib.import_module(f"{found.__name__}.{part}")
            else:
                raise ValueError(f"{_RULE}, got {name:.100}")
    except (AttributeError, ImportError) as error:
        raise ValueError(
            f"the config inside the checkpoint names {name:.100}, which does not exist here: "
            f"{error}"
        ) from error
    if not callable(found) or not _is_allowed(found):
        raise ValueError(f"{_RULE}, got {name:.100}")
    return found


def _name_of(part: Callable[..., Any]) -> str:
    return f"{part.__module__}.{part.__qualname__}"


class _Dumper(yaml.SafeDumper):
    """Writes classes, functions and partials as PyYAML does, and nothing twice by reference."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_name(dumper: yaml.SafeDumper, part: Callable[..., Any]) -> yaml.Node:
    return dumper.represent_scalar(f"{_NAME}{_name_of(part)}", "")


def _represent_tuple(dumper: yaml.SafeDumper, values: tuple[object, ...]) -> yaml.Node:
    return dumper.represent_sequence(_TUPLE, values)


def _represent_partial(dumper: yaml.SafeDumper, call: "functools.partial[Any]") -> yaml.Node:
    arguments = {"args": [call.func, *call.args], "kwds": call.keywords}
    return dumper.represent_mapping(_PARTIAL, arguments)


_Dumper.add_multi_representer(type, _represent_name)
_Dumper.add_representer(FunctionType, _represent_name)
_Dumper.add_representer(tuple, _represent_tuple)
_Dumper.add_representer(functools.partial, _represent_partial)


class _Loader(yaml.SafeLoader):
    """Plain values, and what `_named` finds."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # A few references to references unfold to more than fits into memory.
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "references are not allowed", mark)
        return super().compose_node(parent, index)


def _construct_name(loader: yaml.SafeLoader, name: str, node: yaml.Node) -> Callable[..., Any]:
    return _named(name)


def _construct_tuple(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> tuple[object, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


def _construct_partial(loader: yaml.SafeLoader, node: yaml.MappingNode) -> Any:
    arguments = loader.construct_mapping(node, deep=True)
    match arguments:
        case {"args": [function, *values], "kwds": dict(named)} if _is_allowed(function):
            return functools.partial(function, *values, **named)
    raise ValueError(f"a partial must be one of a class or function, got {arguments!r:.100}")


_Loader.add_multi_constructor(_NAME, _construct_name)
_Loader.add_constructor(_TUPLE, _construct_tuple)
_Loader.add_constructor(_PARTIAL, _construct_partial)


def _written(value: object) -> object:
    """Names the targets of lazy calls, and writes dataclasses as such calls."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dump_dataclass(value)
    if isinstance(value, dict):
        return {
            key: _name_of(below) if key == "_target_" and callable(below) else _written(below)
            for key, below in value.items()
        }
    return [_written(below) for below in value] if isinstance(value, list) else value


def _checked(value: object) -> object:
    """Finds the targets of lazy calls, and refuses what could make others of them later."""
    if isinstance(value, list):
        return [_checked(below) for below in value]
    if isinstance(value, str) and "${" in _REFERENCE.sub("", value):
        raise ValueError(
            "a config inside a checkpoint may only refer to its own keys, such as "
            f"${{dataset.num_classes}}, got {value:.100}"
        )
    if not isinstance(value, dict):
        return value
    checked = {key: _checked(below) for key, below in value.items()}
    if "_target_" in checked:
        # Detectron2 would build the object from another config, which can name pickles.
        if "cfg" in checked:
            raise ValueError("a lazy call inside a checkpoint may not have the argument cfg")
        target = checked["_target_"]
        found = _named(target) if isinstance(target, str) else target
        if not callable(found) or not _is_allowed(found):
            raise ValueError(f"{_RULE}, got {target!r:.100}")
        # OmegaConf would take a dataclass for the declaration of a config.
        checked["_target_"] = _name_of(found) if dataclasses.is_dataclass(found) else found
    return checked


def _check_tta(cfg: DictConfig) -> None:
    """Refuses overrides of test-time augmentation that could name a class."""
    overrides = OmegaConf.select(cfg, "train.inference.tta.overrides") or []
    for text in map(str, overrides):
        key, _, value = text.partition("=")
        values = re.split(r"[\[\]\s,]+", value)
        if (
            "_target_" in key
            or not _KEY.fullmatch(key)
            or not all(map(_PLAIN_VALUE.fullmatch, values))
        ):
            raise ValueError(
                "train.inference.tta.overrides inside a checkpoint may only set numbers, true, "
                f"false, null and lists of them, got {text:.100}"
            )


def config_from_text(text: str) -> DictConfig:
    """Reads what `config_to_text` has written; nothing in it is run.

    Raises:
        ValueError: the text is too long, damaged, or names what it may not.
    """
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(
            f"a config has at most {_MOST_CHARACTERS} characters, this one has {len(text)}"
        )
    try:
        content = yaml.load(text, _Loader)
        if not isinstance(content, dict):
            raise ValueError(f"it must be a group of keys, got {type(content).__name__}")
        cfg = OmegaConf.create(cast(Plain, _checked(content)), flags={"allow_objects": True})
        _check_tta(cfg)
    except RecursionError as error:
        raise ValueError("its groups are nested too deep") from error
    except (yaml.YAMLError, OmegaConfBaseException, TypeError, LookupError) as error:
        raise ValueError(f"it is damaged: {' '.join(str(error).split())}") from error
    return cfg


def config_to_text(cfg: DictConfig) -> str:
    """The text of a config, which `config_from_text` reads; `LazyConfig.load` reads it as YAML.

    Raises:
        ValueError: the config has what that would refuse, such as a class of your own.
    """
    content = OmegaConf.to_container(cfg, resolve=False, structured_config_mode=SCMode.INSTANTIATE)
    try:
        text = yaml.dump(
            _written(content),
            Dumper=_Dumper,
            default_flow_style=None,
            allow_unicode=True,
            width=9999,
            sort_keys=False,
        )
    except yaml.representer.RepresenterError as error:
        value = error.args[-1]
        raise ValueError(
            f"a config inside a checkpoint holds plain values and names, got {value!r:.100}"
        ) from error
    config_from_text(text)
    return text


def class_entries(metadata: Metadata) -> dict[str, object]:
    """What a checkpoint carries of the classes: their names and ids, as far as they are known."""
    known = metadata.as_dict()
    entries: dict[str, object] = {
        key: [str(name) for name in known[key]] for key in _NAMES if known.get(key)
    }
    numbers = [str(number) for number in range(len(known.get("stuff_classes", ())))]
    if entries == {"stuff_classes": numbers}:  # they stand for names that are not known
        return {}
    for key in _IDS:
        if entries and known.get(key):
            entries[key] = {int(id_): int(number) for id_, number in known[key].items()}
    return entries


def _are_classes(entries: Mapping[str, object]) -> bool:
    """Whether `class_entries` may have made this; other codes save other things as `classes`."""
    names = [entries[key] for key in _NAMES if key in entries]
    ids = [entries[key] for key in _IDS if key in entries]
    return (
        len(names) > 0
        and len(names) + len(ids) == len(entries)
        and all(isinstance(n, list) and all(isinstance(name, str) for name in n) for n in names)
        and all(isinstance(i, dict) and all(map(_is_pair_of_ids, i.items())) for i in ids)
    )


def _is_pair_of_ids(pair: tuple[object, object]) -> bool:
    return all(type(number) is int for number in pair)


def carried_classes(weights: str) -> Metadata | None:
    """The names of the classes that weights were trained for; None if the file has none.

    Args:
        weights: as of `load_init_checkpoint`.

    Raises:
        ValueError: the file cannot be downloaded.
    """
    source = weights.partition("?")[0]
    if not source or (is_remote(source) and not is_checkpoint(source)):
        return None
    file = fetch(expand_home(source))
    try:
        if not is_of_run(file):
            return None
        entries = read_checkpoint_file(file, is_mapped=True).get("classes")
    except (OSError, ValueError):  # whoever loads the weights says why
        return None
    return Metadata(**entries) if isinstance(entries, dict) and _are_classes(entries) else None


def is_checkpoint(name: str | Path) -> bool:
    """Whether what stands in place of a config is, by its name, a checkpoint."""
    return str(name).rstrip("/").endswith((*CHECKPOINT_SUFFIXES, SHARDED_SUFFIX))


def read_config(source: str | Path) -> DictConfig:
    """The config that a checkpoint carries; nothing in the file is run.

    What belongs to the machine and the run it comes from is replaced: `train.init_checkpoint` is
    the file itself, `train.device` the default of this machine, `dataset.root` null, and results go
    to ./output/<name of the folder>/<name of the file>.

    Args:
        source: as of `fetch`; a run has written it.

    Raises:
        ValueError: the file is no checkpoint, has no config, or one that names what it may not.
    """
    source = expand_home(str(source))
    file = fetch(source)
    text = read_checkpoint_file(file, is_mapped=True).get("config")
    if not isinstance(text, str):
        raise ValueError(
            f"{source} carries no config: give its config, and the file with --weights (in Python "
            "LazyPredictor(cfg, weights))"
        )
    try:
        cfg = config_from_text(text)
        if not isinstance(cfg.get("train"), DictConfig):
            raise ValueError("it must have the group of keys train")
    except ValueError as error:
        raise ValueError(f"the config inside {source} cannot be used: {error}") from error
    cfg.train.init_checkpoint = source
    cfg.train.output_dir = f"./output/{file.absolute().parent.name}/{file.stem}"
    cfg.train.pop("device", None)
    fill_defaults(cfg)
    if OmegaConf.select(cfg, "dataset.root") is not None:
        cfg.dataset.root = None
    return cfg
