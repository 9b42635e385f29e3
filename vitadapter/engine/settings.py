"""The settings of a run, `train.*` of a config: default, type, range and meaning of each key.

The keys that Detectron2 knows have its names. `configs/common/train.py` makes a config of them, and
whatever is declared here is checked, filled in and known to the command line.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import torch
from omegaconf import DictConfig
from torch.nn.parallel import DistributedDataParallel

from vitadapter.data.channel_files import MAX_CHANNELS
from vitadapter.engine.parallel import PARALLEL
from vitadapter.engine.writers import WRITERS

__all__ = [
    "DDP_DEFAULTS",
    "AmpDtype",
    "AmpSettings",
    "BestCheckpointSettings",
    "CheckpointerSettings",
    "Decay",
    "Device",
    "EMASettings",
    "ImageFormat",
    "NotNegativeInt",
    "NotNegativeNumber",
    "PicturesSettings",
    "PositiveInt",
    "Rule",
    "TrainSettings",
    "broken_rule",
    "check_settings",
    "check_value",
    "expand_home",
    "fill_defaults",
    "settings_group",
]


class Rule(NamedTuple):
    """Stands in `Annotated[type, Rule(...)]` for what a value must be, beyond its type."""

    words: str
    """Completes the sentence "the key must be ..."."""
    holds: Callable[[Any], bool]


def expand_home(path: str) -> str:
    """`path` with a leading `~` resolved; any other path stays as it is."""
    return str(Path(path).expanduser()) if path == "~" or path.startswith("~/") else path


def _is_folder(name: str) -> bool:
    path = Path(expand_home(name))
    return name.strip() != "" and (path.is_dir() or not path.exists())


def _is_device(name: str) -> bool:
    try:
        torch.device(name)
    except RuntimeError:
        return False
    return True


def _are_ddp_arguments(value: object) -> bool:
    # The first is Detectron2's.
    known = {"fp16_compression", *inspect.signature(DistributedDataParallel).parameters}
    return isinstance(value, Mapping) and known >= set(value)


def _are_writers(value: object) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    names = [one for one in value if isinstance(one, str)]
    calls = [one for one in value if isinstance(one, Mapping) and "_target_" in one]
    is_known = set(names) <= set(WRITERS) and len(set(names)) == len(names)
    return is_known and len(names) + len(calls) == len(value)


DDP_DEFAULTS: Mapping[str, object] = MappingProxyType(
    dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False)
)
"""Of `train.ddp`."""

PositiveInt = Annotated[int, Rule("a positive integer", lambda v: v >= 1)]
NotNegativeInt = Annotated[int, Rule("0 or a positive integer", lambda v: v >= 0)]
PositiveNumber = Annotated[float, Rule("a positive number", lambda v: 0 < v < float("inf"))]
NotNegativeNumber = Annotated[
    float, Rule("0 or a positive number", lambda v: 0 <= v < float("inf"))
]
Decay = Annotated[float, Rule("a number from 0 to below 1", lambda v: 0 <= v < 1)]
Score = Annotated[float, Rule("a number from 0 to 1", lambda v: 0 <= v <= 1)]
# NumPy takes the double of a seed.
Seed = Annotated[
    int, Rule("an integer below 2**31 (-1 for a random one)", lambda v: -1 <= v < 2**31)
]
Folder = Annotated[str, Rule("the name of a folder", _is_folder)]
Weights = Annotated[str, Rule("the name of a file, a URL, ''", lambda v: True)]
Device = Annotated[str, Rule("a device such as cuda, cuda:1 or cpu", _is_device)]
Metric = Annotated[
    str, Rule("the name of a value of the evaluation such as segm/AP", lambda v: v.strip() != "")
]
ParallelName = Annotated[str, Rule(" or ".join(PARALLEL), PARALLEL.__contains__)]
DDPArguments = Annotated[
    dict[str, object],
    Rule("a group of arguments of DistributedDataParallel", _are_ddp_arguments),
]
Writers = Annotated[
    list[object],
    Rule(
        f"a list of {', '.join(WRITERS)} (each once), or lazy calls of a Detectron2 EventWriter",
        _are_writers,
    ),
]
AmpDtype = Literal["float16", "bfloat16"]
ImageFormat = (
    Literal["RGB", "BGR"]
    | Annotated[
        int, Rule(f"a number of channels up to {MAX_CHANNELS}", lambda v: 1 <= v <= MAX_CHANNELS)
    ]
)


@dataclass(frozen=True, kw_only=True)
class AmpSettings:
    """Mixed precision of training."""

    enabled: bool = False
    dtype: AmpDtype = "float16"
    # The factor of the loss that float16 starts with; bfloat16 needs none.
    init_scale: PositiveNumber = 512.0


@dataclass(frozen=True, kw_only=True)
class EMASettings:
    """A moving average of the weights, which is evaluated instead of them: see `WeightEMA`."""

    enabled: bool = False
    decay: Decay = 0.9999
    ramp_iters: NotNegativeInt = 2000


@dataclass(frozen=True, kw_only=True)
class CheckpointerSettings:
    """How often the state of training is saved, and how many of these checkpoints are kept."""

    period: PositiveInt
    # None for all.
    max_to_keep: PositiveInt | None = None


@dataclass(frozen=True, kw_only=True)
class BestCheckpointSettings:
    """Which value of an evaluation `model_best.pth` has the best of."""

    # Such as "segm/AP"; None for no such file.
    metric: Metric | None = None
    mode: Literal["max", "min"] = "max"
    # Training ends after this many evaluations without a new best; None: never.
    patience: PositiveInt | None = None


@dataclass(frozen=True, kw_only=True)
class PicturesSettings:
    """Pictures of what the model finds in a few test images, drawn during training."""

    # In evaluations; 0 draws none.
    period: NotNegativeInt = 0
    # How many images, spread evenly over the test set.
    number: PositiveInt = 4
    # Of the objects that are drawn.
    score_threshold: Score = 0.5


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """All of `train`. What has no default must be in every config."""

    output_dir: Folder = "./output"
    # A file, a URL, `hf://org/repo/file` or `timm://name`; empty for random weights.
    init_checkpoint: Weights | None = ""
    # Whether a checkpoint may have less than 90 % of the plain ViT's parameters.
    init_allow_partial: bool = False
    max_iter: PositiveInt
    # Of the weights, the order of the data and the augmentations; -1 for a new one in each run.
    seed: Seed = -1
    # An iteration splits its batch into this many micro-batches, which saves memory.
    accumulate_steps: PositiveInt = 1
    amp: AmpSettings = field(default_factory=AmpSettings)
    # Whether `torch.compile` makes programs of the parts of the model that work on tokens.
    compile: bool = False
    ema: EMASettings | None = field(default_factory=EMASettings)
    # How several processes share the work: `ddp`, or `fsdp2`, which also divides the weights.
    parallel: ParallelName = "ddp"
    ddp: DDPArguments = field(default_factory=lambda: dict(DDP_DEFAULTS))
    checkpointer: CheckpointerSettings
    best_checkpoint: BestCheckpointSettings | None = field(default_factory=BestCheckpointSettings)
    # In iterations; 0 evaluates at the end only.
    eval_period: NotNegativeInt
    log_period: PositiveInt = 20
    # Whether `report/` is written after the last evaluation. It takes about as long as the
    # evaluation of the results.
    report: bool = False
    # Besides metrics.json; None for TensorBoard where it is installed.
    writers: Writers | None = None
    pictures: PicturesSettings | None = field(default_factory=PicturesSettings)
    # A lazy call of `InferenceModel`: how evaluation and prediction run the model.
    inference: DictConfig | None = None
    device: Device = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")


_PLAIN = {
    bool: Rule("True or False", lambda v: type(v) is bool),
    int: Rule("an integer", lambda v: type(v) is int),
    float: Rule("a number", lambda v: type(v) in (int, float)),
    str: Rule("text", lambda v: type(v) is str),
    NoneType: Rule("null", lambda v: v is None),
}


def _alternatives(annotation: object) -> tuple[object, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _group(annotation: object) -> type | None:
    """The dataclass of a group of settings, if the annotation has one."""
    kinds = (kind for kind in _alternatives(annotation) if isinstance(kind, type))
    return next(filter(is_dataclass, kinds), None)


def _rule(kind: object) -> Rule | None:
    """What values of a type are; None where that is not known."""
    if get_origin(kind) is Literal:
        return Rule(" or ".join(map(str, get_args(kind))), get_args(kind).__contains__)
    if get_origin(kind) is Annotated:
        base, rule = _rule(get_args(kind)[0]), get_args(kind)[1]
        if base is None or not isinstance(rule, Rule):
            return rule if isinstance(rule, Rule) else base
        return Rule(rule.words, lambda value: base.holds(value) and rule.holds(value))
    if group := _group(kind):
        names = ", ".join(setting.name for setting in fields(group))
        return Rule(f"a group of keys ({names})", lambda value: isinstance(value, Mapping))
    return next((rule for plain, rule in _PLAIN.items() if plain is kind), None)


def broken_rule(annotation: object, value: object) -> str | None:
    """What `value` ought to be by a type annotation, in words; None where it is, or may be."""
    rules = [_rule(kind) for kind in _alternatives(annotation)]
    known = [rule for rule in rules if rule is not None]
    if len(known) < len(rules) or any(rule.holds(value) for rule in known):
        return None
    return " or ".join(rule.words for rule in known)


def check_value(key: str, annotation: object, value: object) -> None:
    """Refuses a value that a type annotation does not allow.

    Raises:
        ValueError: names the key, the rule and the value.
    """
    if rule := broken_rule(annotation, value):
        raise ValueError(f"{key} must be {rule}, got {value!r}")


def settings_group(key: str) -> type | None:
    """The dataclass of a group of settings, such as `train` or `train.ema`, if `key` is one."""
    first, *below = key.split(".")
    group: type | None = TrainSettings if first == "train" else None
    for name in below:
        types = {s.name: s.type for s in fields(group)} if group is not None else {}
        group = _group(types.get(name))
    return group


def _default(setting: Field[Any]) -> object:
    if setting.default_factory is MISSING:
        return setting.default
    default = setting.default_factory()
    is_group = is_dataclass(default) and not isinstance(default, type)
    return asdict(default) if is_group else default


def _fill(node: DictConfig, group: type) -> None:
    # `name in node` would be false where the value is a reference that does not resolve.
    given = list(node)
    for setting in fields(group):
        inner = _group(setting.type)
        may_be_null = NoneType in _alternatives(setting.type)
        if setting.name not in given or (inner and may_be_null and node[setting.name] is None):
            if (default := _default(setting)) is MISSING:
                continue
            node[setting.name] = default
        if inner and isinstance(below := node[setting.name], DictConfig):
            _fill(below, inner)


def fill_defaults(cfg: DictConfig) -> None:
    """Adds in place the settings that configs of older versions, and Detectron2's own, lack.

    A group that is null gets its defaults too: with these it is off.

    Args:
        cfg: the whole config.
    """
    if isinstance(train := cfg.get("train"), DictConfig):
        _fill(train, TrainSettings)


def _check(node: DictConfig, group: type, prefix: str) -> None:
    given, known = list(map(str, node)), [setting.name for setting in fields(group)]
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"{prefix}.{name} is not a setting of training (the nearest is {prefix}.{near}): "
                "keys of your own belong outside of `train`"
            )
    for setting in fields(group):
        key = f"{prefix}.{setting.name}"
        if setting.name not in given:
            rule = broken_rule(setting.type, MISSING)
            raise ValueError(f"{key} must be {rule}, but the config has no such key")
        check_value(key, setting.type, node[setting.name])
        if inner := _group(setting.type):
            _check(node[setting.name], inner, key)


def check_settings(cfg: DictConfig) -> None:
    """Fills in what `train` of a config lacks and refuses what is wrong with the rest.

    Args:
        cfg: the whole config.

    Raises:
        ValueError: a setting that does not exist, has no value or a wrong one; names the key.
    """
    fill_defaults(cfg)
    check_value("train", TrainSettings, cfg.get("train"))
    _check(cfg.train, TrainSettings, "train")
