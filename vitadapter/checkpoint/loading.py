"""Loading a checkpoint of any known family into a model: everything is checked, then copied."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from detectron2.modeling import SimpleFeaturePyramid
from torch import Tensor, nn

from vitadapter.checkpoint.families import recognise
from vitadapter.checkpoint.family import Conversion, Family
from vitadapter.checkpoint.report import LoadReport, Resized
from vitadapter.checkpoint.resizing import fit_tensor
from vitadapter.checkpoint.values import check_dense, check_finite, check_type
from vitadapter.modeling.backbone.pyramid import PyramidBackbone

__all__ = ["MIN_NET_SHARE", "LoadPlan", "check_plan", "plan_load"]

# Part of the plain ViT's parameters that a checkpoint must have.
MIN_NET_SHARE = 0.9
# Whatever the pre-training kept beside the patches; a net without them does not need them.
_TOKENS = re.compile(r"(^|\.)(cls_token|dist_token|reg_token|register_tokens|storage_tokens)$")
_NO_SUCH_TOKEN = "the net has no such token"
# Only counts, and PyTorch's files of before version 0.4.1 lack it.
_COUNT = "num_batches_tracked"


@dataclass(frozen=True)
class LoadPlan:
    """What a load would do.

    Attributes:
        tensors: in the model's shapes, by the model's names.
        report: what became of everything.
        net_path: where in the model the plain ViT is; None where there is none.
    """

    tensors: Mapping[str, Tensor]
    report: LoadReport
    net_path: str | None

    @property
    def is_doubtful(self) -> bool:
        """Whether entries of the file have no place, or parts of the net are not in the file."""
        report, prefix = self.report, f"{self.net_path}."
        return bool(
            report.wrong_shape
            or report.unexpected
            or any(name.startswith(prefix) for name in report.missing)
        )

    def apply(self, model: nn.Module) -> None:
        """Copies the tensors into the model's parameters and buffers."""
        state = model.state_dict()
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                state[name].copy_(tensor)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _find_backbone(model: nn.Module) -> str | None:
    """Path of the one submodule that wraps a plain ViT as its ``net``; None without one."""
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
        if conversion.scope == "net":
            return _join(_join(backbone_path, "net"), name)
        if conversion.scope == "backbone" or old == "":
            return _join(backbone_path, name)
        if old is not None and name.startswith(f"{old}."):
            return _join(backbone_path, name.removeprefix(f"{old}."))
        return name

    return Conversion(
        {place(name): tensor for name, tensor in conversion.tensors.items()},
        scope="model",
        renamed={old: place(new) for old, new in conversion.renamed.items()},
        dropped=conversion.dropped,
        implied=conversion.implied,
    )


def _convert(
    state_dict: Mapping[str, Tensor],
    family: Family,
    names: Mapping[str, Tensor],
    backbone_path: str,
) -> Conversion:
    """The family's conversion that fits the model best."""
    placed = [_place(convert(state_dict), backbone_path) for convert in family.converters]
    return max(placed, key=lambda conversion: len(conversion.tensors.keys() & names.keys()))


def _initial(tensor: Tensor) -> str:
    """How an entry that was not loaded starts."""
    if tensor.numel() and not tensor.is_meta and bool((tensor == tensor.flatten()[0]).all()):
        return f"stays {tensor.flatten()[0].item():g}"
    return "stays as initialised"


def _imply(
    patterns: Mapping[str, float], missing: Sequence[str], prefix: str | None
) -> dict[str, float]:
    """Values of missing entries of the net that the family leaves out."""
    if prefix is None:
        return {}
    return {
        name: value
        for name in missing
        for pattern, value in patterns.items()
        if name.startswith(prefix) and re.fullmatch(pattern, name[len(prefix) :])
    }


def plan_load(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    source: str,
    *,
    resize: bool = True,
) -> LoadPlan:
    """Finds out what of a checkpoint goes where; the model is not changed.

    Args:
        model: a detector, a segmenter or a backbone.
        state_dict: as read from a file. Its family is recognised, but for a model without a plain
            ViT names are taken as they are.
        source: how the report calls it.
        resize: whether positions, patches and tables of another size may be resized.

    Returns:
        LoadPlan: to be checked by :func:`check_plan` and then applied.

    Raises:
        ValueError: an unknown family, a converter's complaint, or entries that are sparse, of
            another kind of numbers, NaN or infinite. Nothing that :meth:`LoadPlan.apply` copies can
            fail after this.
    """
    names = model.state_dict()
    path = _find_backbone(model)
    try:
        check_dense(state_dict, allow_meta=any(tensor.is_meta for tensor in names.values()))
        if path is None:
            conversion, name = Conversion(dict(state_dict), scope="model"), "names as they are"
        else:
            family = recognise(state_dict)
            conversion, name = _convert(state_dict, family, names, path), family.name
        net_path = None if path is None else _join(path, "net")
        return _fit(model, conversion, net_path, source, name, resize)
    except ValueError as error:
        raise ValueError(f"{source} cannot be loaded: {error}") from error
    except (LookupError, RuntimeError) as error:  # of PyTorch, for odd shapes and types
        raise ValueError(f"{source} cannot be loaded: its tensors do not fit ({error})") from error


@dataclass
class _Fitted:
    """What fits into the model, and what does not."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    resized: dict[str, Resized] = field(default_factory=dict)
    wrong_shape: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    needless: dict[str, str] = field(default_factory=dict)


def _fit_tensors(
    found: Mapping[str, Tensor], state: Mapping[str, Tensor], prefix: str | None, resize: bool
) -> _Fitted:
    """Brings tensors to the shapes of the model.

    Args:
        found: by the model's names.
        state: of the model.
        prefix: of the net's names; None without a net.
        resize: whether tensors of the net may be resized.
    """
    file, net = ({} if prefix is None else _below(x, prefix) for x in (found, state))
    result = _Fitted()
    for name, tensor in found.items():
        in_net = prefix is not None and name.startswith(prefix)
        if name not in state:
            if in_net and _TOKENS.search(name):
                result.needless[name] = _NO_SUCH_TOKEN
            else:
                result.unexpected.append(name)
            continue
        shape = state[name].shape
        check_type(name, tensor, state[name])
        method = None
        try:
            if tensor.shape != shape:
                if not (in_net and resize):
                    raise ValueError
                tensor, method = fit_tensor(name[len(prefix) :], file, net)
        except ValueError as error:
            why = f" ({error})" if str(error) else ""
            shapes = f"{tuple(tensor.shape)} in the file, {tuple(shape)} here"
            result.wrong_shape[name] = f"{shapes}{why}"
            continue
        result.tensors[name] = tensor
        if method is not None:
            result.resized[name] = Resized(tuple(found[name].shape), tuple(shape), method)
    check_finite(result.tensors, state)
    return result


def _fit(
    model: nn.Module,
    conversion: Conversion,
    net_path: str | None,
    source: str,
    family_name: str,
    resize: bool,
) -> LoadPlan:
    state = model.state_dict()
    prefix = None if net_path is None else f"{net_path}."
    fitted = _fit_tensors(conversion.tensors, state, prefix, resize)
    loaded = tuple(fitted.tensors)
    missing = [n for n in _unshared(model, fitted.tensors) if n not in fitted.wrong_shape]
    implied = _imply(conversion.implied, missing, prefix)
    tensors = fitted.tensors | {n: torch.full_like(state[n], v) for n, v in implied.items()}
    report = LoadReport(
        source=source,
        family=family_name,
        net_share=None if net_path is None else _share(model, net_path, tensors),
        loaded=loaded,
        resized=fitted.resized,
        renamed=conversion.renamed,
        dropped={**conversion.dropped, **fitted.needless},
        implied=implied,
        missing={name: _initial(state[name]) for name in missing if name not in implied},
        wrong_shape=fitted.wrong_shape,
        unexpected=tuple(fitted.unexpected),
    )
    return LoadPlan(tensors, report, net_path)


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def _unshared(model: nn.Module, found: Mapping[str, Tensor]) -> list[str]:
    """Names that are not found; a shared parameter is there under each of its names."""
    state = model.state_dict(keep_vars=True)
    known = {id(value) for name, value in state.items() if name in found}
    return [
        name
        for name, value in state.items()
        if id(value) not in known and not name.endswith(_COUNT)
    ]


def _share(model: nn.Module, net_path: str, tensors: Mapping[str, Tensor]) -> float:
    sizes = {name: p.numel() for name, p in model.get_submodule(net_path).named_parameters()}
    found = sum(size for name, size in sizes.items() if f"{net_path}.{name}" in tensors)
    return found / max(sum(sizes.values()), 1)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def check_plan(
    plan: LoadPlan, model: nn.Module, *, complete: bool = False, allow_partial: bool = False
) -> None:
    """Refuses a checkpoint of another model.

    Args:
        plan: for ``model``.
        model: not changed.
        complete: whether every weight of the model must be in the checkpoint, in its shape.
        allow_partial: whether the plain ViT may be loaded in part; one parameter is enough.

    Raises:
        ValueError: says what is missing, of another shape, or too much.
    """
    report = plan.report
    wrong_shape = [f"{name} is {shapes}" for name, shapes in report.wrong_shape.items()]
    lacking = [*report.missing, *wrong_shape]
    parameters = [name for name, _ in model.named_parameters()]
    if parameters and all(n in report.missing or n in report.wrong_shape for n in parameters):
        found = wrong_shape[:1] or report.unexpected or list(report.dropped)
        raise ValueError(
            f"{report.source} has none of the {len(parameters)} parameters of the model: "
            f"it has {_first(found)}, the model has {_first(parameters)}"
        )
    if complete and lacking:
        raise ValueError(
            f"{report.source} is of another model: {len(lacking)} of the "
            f"{len(model.state_dict())} weights are missing or of another shape: "
            f"{_first(lacking)}"
        )
    if not allow_partial:
        _check_net(plan)


def _check_net(plan: LoadPlan) -> None:
    """Refuses a file whose plain ViT is of another size or kind than the net."""
    report, prefix = plan.report, f"{plan.net_path}."
    if report.net_share is None:
        return
    advice = "train.init_allow_partial=True loads what fits"
    wrong = [f"{n} is {s}" for n, s in report.wrong_shape.items() if n.startswith(prefix)]
    if wrong:
        raise ValueError(
            f"{report.source} ({report.family}) is of another size than the net: "
            f"{len(wrong)} tensors do not fit: {_first(wrong)}; {advice}"
        )
    surplus = [name for name in report.unexpected if name.startswith(prefix)]
    if surplus:
        raise ValueError(
            f"{report.source} ({report.family}) has {len(surplus)} tensors that the net does not "
            f"have: {_first(surplus)}; {advice}"
        )
    if report.net_share < MIN_NET_SHARE:
        absent = [name for name in report.missing if name.startswith(prefix)]
        raise ValueError(
            f"{report.source} ({report.family}) has {report.net_share:.1%} of the net's "
            f"parameters, {MIN_NET_SHARE:.0%} are needed: {_first(absent)} are missing; {advice}"
        )
