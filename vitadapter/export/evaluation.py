"""Evaluation of an exported file on the test set of a config."""

from omegaconf import DictConfig, OmegaConf
from torch import nn

from vitadapter.engine.inference import in_tiles, needed_answer
from vitadapter.engine.predictor import class_metadata
from vitadapter.engine.trainer import Results, evaluate_only

from .description import Description
from .model import ExportedModel

__all__ = ["check_fits", "evaluate_file"]


def evaluate_file(cfg: DictConfig) -> Results:
    """Evaluates the exported file that `train.init_checkpoint` names.

    The config gives the images, how they are resized, and the evaluator; the file gives the model.

    Args:
        cfg: the whole config.

    Returns:
        As `do_test`.

    Raises:
        SetupError: the file cannot be used, or is one of another task or with other classes; the
            data is unusable; or `train.inference` asks for what only the model itself can do.
    """

    def load() -> tuple[nn.Module, int]:
        model = ExportedModel(cfg.train.init_checkpoint)
        check_fits(model.description, cfg)  # now that the names of the data's classes are known
        return in_tiles(cfg, model), 0

    return evaluate_only(cfg, load)


def check_fits(description: Description, cfg: DictConfig) -> None:
    """Refuses a file for a config with other data.

    Args:
        description: of the file.
        cfg: the whole config.

    Raises:
        ValueError: the file answers another task, or has other classes or another order of
            channels; or `train.inference` is set to more than running the model.
    """
    wanted = OmegaConf.select(cfg, "dataloader.test.mapper.image_format")
    if wanted is not None and wanted != description.image_format:
        raise ValueError(
            f"the exported file takes {description.image_format} images, but "
            f"dataloader.test.mapper.image_format={wanted}: set it to {description.image_format}"
        )
    for key in ("tta.enabled", "amp_dtype"):
        if value := OmegaConf.select(cfg, f"train.inference.{key}"):
            raise ValueError(
                f"an exported file runs as it was exported, got train.inference.{key}={value}"
            )
    test = OmegaConf.select(cfg, "dataset.test")
    if test is None:
        return
    needed = needed_answer(cfg)
    if needed not in description.answers:
        raise ValueError(
            f"the test data {test.name} needs a model that answers with {needed}, the exported "
            f"{description.model} answers with {', '.join(description.answers)}"
        )
    known, ours = class_metadata(cfg), description.metadata()
    for kind in ("thing_classes", "stuff_classes"):
        _check_names(kind, ours.get(kind), known.get(kind), test.name)


def _check_names(kind: str, file: list[str] | None, data: list[str] | None, dataset: str) -> None:
    """Compares class names, of which either may be unknown."""
    if not file or not data:
        return
    if len(file) != len(data):
        raise ValueError(
            f"the exported file has {len(file)} {kind}, the test data {dataset} has {len(data)}"
        )
    numbers = [str(number) for number in range(len(data))]  # of classes without names
    if file == data or numbers in (file, data):
        return
    at = next(i for i, pair in enumerate(zip(file, data, strict=True)) if len(set(pair)) > 1)
    raise ValueError(
        f"class {at} of {kind} is {file[at]!r} in the exported file but {data[at]!r} in the test "
        f"data {dataset}"
    )
