"""Loads a checkpoint of any known family into a model: everything is checked, then copied.

A report says what became of each entry of the file and of the model.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from detectron2.modeling import SimpleFeaturePyramid
from torch import Tensor, nn

from vitadapter.checkpoint.families import FAMILIES, recognise
from vitadapter.checkpoint.family import Conversion, Family, first_few
from vitadapter.checkpoint.fitting import check_dense, fit
from vitadapter.checkpoint.sharded import divide_like
from vitadapter.modeling.backbone.nets.tuning import is_added
from vitadapter.modeling.backbone.pyramid import PyramidBackbone

__all__ = ["MIN_NET_SHARE", "LoadPlan", "LoadReport", "check_plan", "plan_load"]

# The share of the plain ViT's parameters that a checkpoint must have.
MIN_NET_SHARE = 0.9
# A mere counter, which files from before PyTorch 0.4.1 lack.
_COUNT = "num_batches_tracked"

# The length of a summary.
_LINES_PER_GROUP = 6
_NUMBER = re.compile(r"\.\d+\.")


def _pattern(name: str) -> str:
    return _NUMBER.sub(".#.", name)


def _module(name: str) -> str:
    """The part of a name that precedes its first number."""
    return _NUMBER.split(name, maxsplit=1)[0]


def _grouped(names: Mapping[str, str], by_module: bool) -> list[str]:
    """One line for all names that differ only in numbers, the most frequent first."""
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for name, text in names.items():
        key = (_module(name), "") if by_module else (_pattern(name), _pattern(text))
        counts[key] += 1
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    lines = [
        f"{name}{text}" + (f" ({number})" if number > 1 else "")
        for (name, text), number in ordered[:_LINES_PER_GROUP]
    ]
    rest = sum(number for _, number in ordered[_LINES_PER_GROUP:])
    return [*lines, f"and {rest} more"] if rest else lines


@dataclass(kw_only=True)
class LoadReport(Conversion):
    """A conversion that was fitted to a model, for people to read.

    All names are the model's, except the keys of `renamed` and `dropped`, which are the file's.
    `implied` has values by name.

    Attributes:
        source: the file.
        family: the family as which it was recognised.
        net_share: share of the plain ViT's own parameters that was found, in [0, 1]; None if the
            model has no plain ViT. What a tuning adds to it (LoRA, prompts) does not count.
        missing: how an entry that is not in the file is initialised, by name.
    """

    source: str
    family: str
    net_share: float | None = None
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the tensors that are loaded from the file, including resized ones."""
        return tuple(name for name in self.tensors if name not in self.implied)

    def _sections(self) -> Iterable[tuple[str, Mapping[str, str]]]:
        yield "resized", {name: f": {how}" for name, how in self.resized.items()}
        yield "renamed", {old: f" -> {new}" for old, new in self.renamed.items()}
        yield "dropped", {name: f": {why}" for name, why in self.dropped.items()}
        yield "constant", {name: f" = {value:g}" for name, value in self.implied.items()}
        yield "missing", {name: f": {how}" for name, how in self.missing.items()}
        yield "wrong shape", {name: f": {shapes}" for name, shapes in self.wrong_shape.items()}
        yield "unexpected", dict.fromkeys(self.unexpected, "")

    def _title(self) -> str:
        share = "" if self.net_share is None else f", {self.net_share:.1%} of the net's parameters"
        return f"{self.source} ({self.family}): {len(self.loaded)} tensors loaded{share}"

    def summary(self) -> str:
        """Counts and names in a few lines; names that differ only in numbers share one."""
        lines = [self._title()]
        for title, names in self._sections():
            if names:
                lines.append(f"  {title}: {len(names)}")
                lines += [f"    {line}" for line in _grouped(names, title == "missing")]
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Writes every name to a text file."""
        lines = [self._title(), f"loaded: {len(self.loaded)}", *self.loaded]
        for title, names in self._sections():
            lines += ["", f"{title}: {len(names)}"]
            lines += [f"{name}{text}" for name, text in names.items()]
        path.write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class LoadPlan:
    """What a load would do.

    Attributes:
        report: what became of each entry.
        net_path: path of the plain ViT in the model; None if it has none.
    """

    report: LoadReport
    net_path: str | None

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors in the model's shapes, by the model's names."""
        return self.report.tensors

    @property
    def is_doubtful(self) -> bool:
        """Whether entries of the file cannot be used, or parts of the net are not in the file."""
        report, prefix = self.report, f"{self.net_path}."
        return bool(
            report.wrong_shape
            or report.unexpected
            or any(name.startswith(prefix) and not is_added(name) for name in report.missing)
        )

    def apply(self, model: nn.Module) -> None:
        """Copies the tensors into the model's parameters and buffers."""
        state = model.state_dict()
        with torch.no_grad():
            for name, tensor in divide_like(self.tensors, state).items():
                state[name].copy_(tensor)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _find_backbone(model: nn.Module) -> str | None:
    """Path of the one submodule that wraps a plain ViT as its `net`; None if there is none."""
    paths = [
        path
        for path, module in model.named_modules()
        if isinstance(module, PyramidBackbone | SimpleFeaturePyramid)
    ]
    if len(paths) > 1:
        raise ValueError(f"a checkpoint goes into one plain ViT, but the model has {paths}")
    return paths[0] if paths else None


def _place(conversion: Conversion, backbone_path: str) -> Conversion:
    """The conversion with names relative to the model."""
    old = conversion.backbone_path

    def place(name: str) -> str:
        if old is None:
            return _join(backbone_path, f"net.{name}")
        prefix = _join(old, "")
        is_backbone = name.startswith(prefix)
        return _join(backbone_path, name.removeprefix(prefix)) if is_backbone else name

    return replace(
        conversion,
        tensors={place(name): tensor for name, tensor in conversion.tensors.items()},
        renamed={old: place(new) for old, new in conversion.renamed.items()},
    )


def _convert(
    state_dict: Mapping[str, Tensor], family: Family, names: Iterable[str], backbone_path: str
) -> Conversion:
    """The family's conversion that fits the model best: most is placed, and least left over."""

    def quality(conversion: Conversion) -> tuple[int, int]:
        found = len(conversion.tensors.keys() & names)
        return found, found - len(conversion.tensors)

    placed = [_place(convert(state_dict), backbone_path) for convert in family.converters]
    return max(placed, key=quality)


def _initial_value(tensor: Tensor) -> str:
    """What the report says of the value of an entry that was not loaded."""
    if tensor.numel() and not tensor.is_meta and bool((tensor == tensor.flatten()[0]).all()):
        return f"stays {tensor.flatten()[0].item():g}"
    return "stays as initialised"


def _imply(
    patterns: Mapping[str, float], missing: Sequence[str], net_path: str | None
) -> dict[str, float]:
    """Values of those missing entries of the net that the family leaves out."""
    return {
        name: value
        for name in missing
        for pattern, value in patterns.items()
        if net_path is not None and re.fullmatch(rf"{re.escape(net_path)}\.{pattern}", name)
    }


def plan_load(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    source: str,
    *,
    resize: bool = True,
    families: Sequence[Family] = FAMILIES,
) -> LoadPlan:
    """Decides where each entry of a checkpoint goes; the model is not changed.

    Args:
        model: a detector, a segmenter or a backbone.
        state_dict: as read from a file. If the model has no plain ViT, names are taken as they
            are; otherwise, the family of the file decides.
        source: what the report calls it.
        resize: whether positions, patches and tables of the wrong size may be resized.
        families: the families that the file may belong to; a single one is taken in any case.

    Returns:
        A plan, to be checked by `check_plan` and then applied. `LoadPlan.apply` cannot fail.

    Raises:
        ValueError: the family is unknown, its converter refuses the file, or entries are sparse,
            of the wrong kind of numbers, NaN or infinite.
    """
    state = model.state_dict()
    path = _find_backbone(model)
    net_path = None if path is None else _join(path, "net")
    try:
        check_dense(state_dict, allow_meta=any(tensor.is_meta for tensor in state.values()))
        if path is None:
            conversion, name = Conversion(dict(state_dict)), "names as they are"
        else:
            family = recognise(state_dict, families)
            conversion, name = _convert(state_dict, family, state.keys(), path), family.name
        fit(conversion, state, None if path is None else f"{net_path}.", resize=resize)
        return _plan(model, conversion, net_path, source, name)
    except ValueError as error:
        raise ValueError(f"{source} cannot be loaded: {error}") from error
    except (LookupError, RuntimeError) as error:  # raised by PyTorch for odd shapes and types
        raise ValueError(f"{source} cannot be loaded: its tensors do not fit ({error})") from error


def _plan(
    model: nn.Module, fitted: Conversion, net_path: str | None, source: str, family: str
) -> LoadPlan:
    state = model.state_dict()
    missing = [n for n in _unshared(model, fitted.tensors) if n not in fitted.wrong_shape]
    implied = _imply(fitted.implied, missing, net_path)
    tensors = fitted.tensors | {n: torch.full_like(state[n], v) for n, v in implied.items()}
    report = LoadReport(
        **(vars(fitted) | {"tensors": tensors, "implied": implied}),
        source=source,
        family=family,
        net_share=None if net_path is None else _net_share(model, net_path, tensors),
        missing={name: _initial_value(state[name]) for name in missing if name not in implied},
    )
    return LoadPlan(report, net_path)


def _unshared(model: nn.Module, found: Mapping[str, Tensor]) -> list[str]:
    """Names that are not found; a shared parameter is found if one of its names is."""
    state = model.state_dict(keep_vars=True)
    known = {id(value) for name, value in state.items() if name in found}
    return [
        name
        for name, value in state.items()
        if id(value) not in known and not name.endswith(_COUNT)
    ]


def _net_share(model: nn.Module, net_path: str, tensors: Mapping[str, Tensor]) -> float:
    parameters = model.get_submodule(net_path).named_parameters()
    sizes = {name: p.numel() for name, p in parameters if not is_added(name)}
    found = sum(size for name, size in sizes.items() if f"{net_path}.{name}" in tensors)
    return found / max(sum(sizes.values()), 1)


def check_plan(
    plan: LoadPlan, model: nn.Module, *, complete: bool = False, allow_partial: bool = False
) -> None:
    """Refuses a checkpoint of a different model.

    Args:
        plan: for `model`.
        model: not changed.
        complete: whether every weight of the model must be in the checkpoint, in its shape.
        allow_partial: whether the plain ViT may be loaded in part; one parameter is enough.

    Raises:
        ValueError: weights are missing, have the wrong shape or are unexpected; names them.
    """
    report = plan.report
    wrong_shape = [f"{name} is {shapes}" for name, shapes in report.wrong_shape.items()]
    lacking = [*report.missing, *wrong_shape]
    parameters = [name for name, _ in model.named_parameters()]
    if parameters and all(n in report.missing or n in report.wrong_shape for n in parameters):
        found = wrong_shape[:1] or report.unexpected or list(report.dropped)
        raise ValueError(
            f"{report.source} has none of the {len(parameters)} parameters of the model: "
            f"it has {first_few(found)}, the model has {first_few(parameters)}"
        )
    if complete and lacking:
        raise ValueError(
            f"{report.source} is of another model: {len(lacking)} of the "
            f"{len(model.state_dict())} weights are missing or have the wrong shape: "
            f"{first_few(lacking)}"
        )
    if not allow_partial:
        _check_net(plan)


def _check_net(plan: LoadPlan) -> None:
    """Refuses a file whose plain ViT has a different size or kind from the net."""
    report, prefix = plan.report, f"{plan.net_path}."
    if report.net_share is None:
        return
    advice = "train.init_allow_partial=True loads what fits"
    wrong = [f"{n} is {s}" for n, s in report.wrong_shape.items() if n.startswith(prefix)]
    if wrong:
        raise ValueError(
            f"{report.source} ({report.family}) differs in size from the net: "
            f"{len(wrong)} tensors do not fit: {first_few(wrong)}; {advice}"
        )
    surplus = [name for name in report.unexpected if name.startswith(prefix)]
    if surplus:
        raise ValueError(
            f"{report.source} ({report.family}) has {len(surplus)} tensors that the net does not "
            f"have: {first_few(surplus)}; {advice}"
        )
    if report.net_share < MIN_NET_SHARE:
        absent = [name for name in report.missing if name.startswith(prefix)]
        raise ValueError(
            f"{report.source} ({report.family}) has {report.net_share:.1%} of the net's "
            f"parameters, {MIN_NET_SHARE:.0%} are needed: {first_few(absent)} are missing; {advice}"
        )
