"""Continues a run from its newest good checkpoint, with the settings of the config."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm

from vitadapter.checkpoint.reading import read_checkpoint_file
from vitadapter.checkpoint.sharded import divide_like, is_sharded, local_part, named_tensors
from vitadapter.engine.checkpoint import (
    FINAL_NAME,
    LAST_NAME,
    AtomicCheckpointer,
    iteration_of,
    saved_files,
)
from vitadapter.engine.ema import WeightEMA

__all__ = ["find_and_resume", "find_checkpoint", "peek_checkpoint", "resume_training"]

logger = logging.getLogger(__name__)

Content = dict[str, Any]

# Entries of a parameter group that say how a step is computed, without changing its result.
_IMPLEMENTATION = {"params", "param_names", "foreach", "fused", "capturable", "differentiable"}
# Entries of an optimizer's state that have the shape of the parameter.
_LIKE_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


def _is_state(content: object) -> bool:
    """Whether `content` is a dict of tensors."""
    return isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in content.items()
    )


def _is_optimizer(content: object) -> bool:
    """Whether `content` has the form of an optimizer's state."""
    if not isinstance(content, Mapping):
        return False
    groups, state = content.get("param_groups"), content.get("state")
    return (
        isinstance(groups, list)
        and all(isinstance(g, Mapping) and isinstance(g.get("params"), list) for g in groups)
        and isinstance(state, Mapping)
        and all(
            isinstance(value, Mapping)
            and all(isinstance(value.get(key), torch.Tensor | None) for key in _LIKE_PARAMETER)
            for value in state.values()
        )
    )


def _references(
    checkpointer: AtomicCheckpointer, trainer: SimpleTrainer, ema: WeightEMA | None
) -> dict[str, torch.Tensor]:
    """The tensors of the run by their names in a checkpoint, which tell how they are divided."""
    models = {"model": checkpointer.model, **({"model_ema": ema.module} if ema else {})}
    references = {
        f"{key}.{name}": tensor
        for key, model in models.items()
        for name, tensor in model.state_dict().items()
    }
    for number, parameter in enumerate(_parameters(trainer.optimizer)):
        for key in _LIKE_PARAMETER:
            references[f"trainer.optimizer.state.{number}.{key}"] = parameter
    return references


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _read(path: Path, references: Mapping[str, torch.Tensor]) -> Content:
    """Reads a checkpoint that training can continue from.

    Raises:
        ValueError: training cannot continue from it; says why.
    """
    content = read_checkpoint_file(path, references=references)
    trainer = content.get("trainer")
    if not (
        isinstance(trainer, Mapping)
        and isinstance(trainer.get("iteration"), int)
        and trainer["iteration"] >= 0
        and _is_optimizer(trainer.get("optimizer"))
        and _is_state(content.get("model"))
        and _is_state(content.get("model_ema", {}))
    ):
        found = ", ".join(sorted(content)[:5]) or "nothing"
        raise ValueError(f"{path} has no state of training to continue from (it has {found})")
    tensors = named_tensors(content)
    wrong = next((name for name, part in tensors if not local_part(part).isfinite().all()), None)
    if wrong is not None:
        raise ValueError(f"{wrong} of {path} is infinite or NaN")
    return content


def _saved_iteration(path: Path) -> int:
    """The iteration of a checkpoint; -1 if it cannot be read."""
    named = iteration_of(path)
    if named is not None:
        return named
    try:
        iteration = read_checkpoint_file(path, is_mapped=True).get("iteration")
    except ValueError:
        return -1
    return iteration if isinstance(iteration, int) else -1


def _named_last(folder: Path, files: list[Path]) -> Path | None:
    """The checkpoint that `last_checkpoint` names; None if that file does not exist.

    Raises:
        ValueError: `last_checkpoint` names no file of the folder.
        OSError: `last_checkpoint` cannot be read.
    """
    file = folder / LAST_NAME
    if not file.exists():
        return None
    name = file.read_bytes().decode("utf-8-sig", "replace").strip()
    advice = f"write one of {sorted(path.name for path in files)} into it"
    if not name or not name.isprintable() or len(name.encode()) > 255:
        raise ValueError(f"{file} does not name a checkpoint, but {name[:50]!r}: {advice}")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{file} names {name}, which is outside of the folder: {advice}")
    if not (folder / name).is_file() and not is_sharded(folder / name):
        raise ValueError(f"{file} names {name}, which is not a file: {advice}")
    return folder / name


def _candidates(folder: Path) -> Iterator[Path]:
    """The checkpoint that `last_checkpoint` names, then those of the run, the newest first."""
    files = [p for p in saved_files(folder) if iteration_of(p) is not None or p.stem == FINAL_NAME]
    last = _named_last(folder, files)
    if last is not None:
        yield last
    others = [path for path in files if path != last]
    yield from sorted(others, key=lambda path: (_saved_iteration(path), path.name), reverse=True)


def peek_checkpoint(folder: str) -> tuple[Path, Content] | None:
    """Reads what is no tensor of the checkpoint that a run is probably resumed from.

    `find_checkpoint` reads the weights, when the model is there that says how they are divided.

    Args:
        folder: the run's `train.output_dir`.

    Returns:
        The file and its content, whose tensors are not to be used; None if none can be read.

    Raises:
        ValueError: `last_checkpoint` names a file that does not exist.
    """
    for path in _candidates(Path(folder)):
        with contextlib.suppress(ValueError, RecursionError):
            return path, read_checkpoint_file(path, is_mapped=True)
    return None


def find_checkpoint(
    folder: str, references: Mapping[str, torch.Tensor] | None = None
) -> tuple[Path, Content] | None:
    """Reads the checkpoint to resume a run from.

    It is the one that `last_checkpoint` names. If that cannot be read, or has infinite or NaN
    weights, it is the newest good one, with a warning.

    Args:
        folder: the run's `train.output_dir`.
        references: as of `read_checkpoint_file`.

    Returns:
        The file and its content, the same in all processes; None if the folder has no checkpoints.

    Raises:
        ValueError: no checkpoint is good, or `last_checkpoint` names a file that does not exist.
    """
    faults: list[str] = []
    for path in _candidates(Path(folder)):
        content, fault = {}, None
        try:
            content = _read(path, references or {})
        except (ValueError, RecursionError) as error:
            fault = str(error)
        # What one process cannot read, none of them uses.
        if fault := next(filter(None, comm.all_gather(fault)), None):
            faults.append(fault)
            continue
        if faults:
            logger.warning("%s: training continues from %s instead", "; ".join(faults), path)
        return path, content
    if faults:
        raise ValueError(
            f"{folder} has no checkpoint to resume from: {'; '.join(faults)}. Start another run "
            "with train.output_dir=..."
        )
    return None


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, object]]:
    """The settings of each parameter group of an optimizer that was just built."""
    # "lr" is left to the schedule, which computes it from "initial_lr".
    return [
        {"initial_lr" if k == "lr" else k: value for k, value in group.items() if k != "params"}
        for group in optimizer.param_groups
    ]


def _apply_settings(
    optimizer: torch.optim.Optimizer, settings: list[dict[str, object]], path: Path
) -> None:
    """Replaces the checkpoint's settings by those of the config, with a warning for each change."""
    changed: dict[str, tuple[object, object]] = {}
    for group, wanted in zip(optimizer.param_groups, settings, strict=True):
        for key, new in wanted.items():
            if group.get(key, new) != new and key not in _IMPLEMENTATION:
                changed.setdefault(key, (group[key], new))
            group[key] = new
    for key, (old, new) in changed.items():
        logger.warning("%s was trained with %s=%s, from here on it is %s", path, key, old, new)


def _group_differences(
    saved: Mapping[str, Any], group: Mapping[str, Any], state: Mapping[int, Any]
) -> list[str]:
    """The differences of a parameter group for which its saved state cannot be used."""
    parameters, numbers = group["params"], saved["params"]
    if len(numbers) != len(parameters):
        return [f"{len(numbers)} parameters in the file, {len(parameters)} here"]
    lost, new = (
        sorted(set(first) - set(second) - _IMPLEMENTATION - {"initial_lr"})
        for first, second in ((saved, group), (group, saved))
    )
    if lost and new:
        return [f"another kind of optimizer, with {', '.join(lost)} instead of {', '.join(new)}"]
    if group.get("amsgrad") and not saved.get("amsgrad"):
        return ["amsgrad=True needs a state that amsgrad=False does not have"]
    return [
        f"{key} is {tuple(value.shape)} in the file for a parameter {tuple(parameter.shape)}"
        for number, parameter in zip(numbers, parameters, strict=True)
        for key, value in state.get(number, {}).items()
        if key in _LIKE_PARAMETER
        if value is not None and value.shape != parameter.shape
    ]


def _check_optimizer(
    saved: Mapping[str, Any], optimizer: torch.optim.Optimizer, path: Path
) -> None:
    """Refuses the state of another optimizer; PyTorch compares only numbers of parameters."""
    groups, saved_groups = optimizer.param_groups, saved["param_groups"]
    differences = [f"{len(saved_groups)} parameter groups in the file, {len(groups)} here"]
    if len(groups) == len(saved_groups):
        differences = [
            f"parameter group {index}: {difference}"
            for index, (old, new) in enumerate(zip(saved_groups, groups, strict=True))
            for difference in _group_differences(old, new, saved["state"])
        ]
    if differences:
        raise ValueError(
            f"{path} cannot be resumed with this config, whose optimizer differs "
            f"({'; '.join(differences[:3])}): take back what has changed, or start another run "
            f"with train.init_checkpoint={path} train.output_dir=..."
        )


def _divide_state(state: dict[int, dict[str, Any]], optimizer: torch.optim.Optimizer) -> None:
    """Divides the state of a single file in place as the parameters are divided."""
    for number, parameter in enumerate(_parameters(optimizer)):
        own = state.get(number, {})
        tensors = {key: own[key] for key in _LIKE_PARAMETER if own.get(key) is not None}
        own.update(divide_like(tensors, dict.fromkeys(tensors, parameter)))


def find_and_resume(
    folder: str,
    checkpointer: AtomicCheckpointer,
    trainer: SimpleTrainer,
    ema: WeightEMA | None,
) -> tuple[Path, int] | None:
    """Continues from the checkpoint of `find_checkpoint`, if there is one.

    Args:
        folder: the run's `train.output_dir`.
        checkpointer, trainer, ema: as of `resume_training`.

    Returns:
        The file, and the iteration to continue with; None if the folder has no checkpoints.

    Raises:
        ValueError: no checkpoint is good, or it belongs to another model or optimizer.
    """
    found = find_checkpoint(folder, _references(checkpointer, trainer, ema))
    if found is None:
        return None
    return found[0], resume_training(checkpointer, trainer, ema, *found)


def resume_training(
    checkpointer: AtomicCheckpointer,
    trainer: SimpleTrainer,
    ema: WeightEMA | None,
    path: Path,
    content: Content,
) -> int:
    """Restores the whole state of a checkpoint.

    The optimizer keeps the learning rate and other settings that it was built with. If the
    checkpoint has different ones, a warning names both.

    Args:
        checkpointer: the checkpointer of the model.
        trainer: the trainer, with its hooks registered.
        ema: the average of the weights, if there is one.
        path: the file name of the checkpoint, for messages.
        content: the content of the checkpoint, from `find_checkpoint`.

    Returns:
        The iteration to continue with.

    Raises:
        ValueError: the checkpoint belongs to another model or optimizer.
    """
    checkpointer.load_model(content["model"], str(path))
    _check_optimizer(content["trainer"]["optimizer"], trainer.optimizer, path)
    settings = _settings(trainer.optimizer)
    _divide_state(content["trainer"]["optimizer"]["state"], trainer.optimizer)
    try:
        trainer.load_state_dict(content["trainer"])
    except (AttributeError, LookupError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path} does not have the state of such a trainer ({type(error).__name__}: {error})"
        ) from error
    _apply_settings(trainer.optimizer, settings, path)
    average = content.get("model_ema")
    if ema is not None:
        ema.restore(average, checkpointer.model, str(path))
    elif average is not None:
        logger.warning("%s has averaged weights, which train.ema.enabled=False drops", path)
    return trainer.iter + 1
