"""Configs by name: the shared bases wherever the package is installed, and the experiments."""

import difflib
import fnmatch
import importlib.util
from collections.abc import Iterable
from pathlib import Path

import vitadapter.configs
import vitadapter.detectron2_required
import vitadapter.experiments

# isort: split
from detectron2.config import LazyConfig
from omegaconf import DictConfig, OmegaConf

__all__ = [
    "config_file",
    "experiment_name",
    "get_config_path",
    "is_experiment",
    "is_file",
    "list_experiments",
    "load_experiment",
    "near_names",
]

_EXPERIMENTS = Path(vitadapter.experiments.__path__[0]).resolve()


def _shared_roots() -> list[Path]:
    roots = [Path(vitadapter.configs.__file__).parent]
    # Found without importing detectron2.model_zoo, which needs an old setuptools.
    detectron2 = importlib.util.find_spec("detectron2")
    if detectron2 is not None and detectron2.origin is not None:
        roots.append(Path(detectron2.origin).parent / "model_zoo" / "configs")
    return roots


def is_file(path: str | Path) -> bool:
    """Whether there is such a file; a name that is too long for one is none."""
    try:
        return Path(path).is_file()
    except OSError:
        return False


def experiment_name(name: str) -> str:
    """An experiment's name, such as "COCO/mask_rcnn_vit_adapter_s_deit_3x", without ".py"."""
    return name.removesuffix(".py")


def list_experiments(pattern: str = "*") -> list[str]:
    """Names of the experiments of the model zoo, sorted.

    Args:
        pattern: of the names, with the wildcards of a shell, such as "COCO/mask_rcnn_*" or
            "*dinov3*".
    """
    files = _EXPERIMENTS.glob("*/*.py")
    names = sorted(path.relative_to(_EXPERIMENTS).with_suffix("").as_posix() for path in files)
    return fnmatch.filter(names, experiment_name(pattern))


def near_names(name: str, names: Iterable[str]) -> str:
    """Those of the names that are most like another one, in words."""
    return ", ".join(difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)) or "none"


def get_config_path(name: str) -> Path:
    """Path of a config: a shared one of ours, an experiment, or a shared one of Detectron2.

    Args:
        name: relative path below `vitadapter.configs` or Detectron2's model zoo, such as
            "common/models/mask_rcnn_vit_adapter.py" or "common/models/mask_rcnn_fpn.py"; or an
            experiment such as "COCO/mask_rcnn_vit_adapter_s_deit_3x", with or without ".py".

    Raises:
        ValueError: there is none; names those that are like it.
    """
    experiment = _EXPERIMENTS / f"{experiment_name(name)}.py"
    ours, *others = _shared_roots()
    for path in (ours / name, experiment, *(root / name for root in others)):
        if is_file(path):
            return path
    if name.startswith("common/"):
        shared = sorted(path.relative_to(ours).as_posix() for path in ours.glob("common/**/*.py"))
        raise ValueError(
            f"no shared config {name!r}; there are {', '.join(shared)}, and Detectron2's"
        )
    raise ValueError(f"no config {name!r}; near names: {near_names(name, list_experiments())}")


def config_file(config: str | Path) -> Path:
    """The file of a config.

    Args:
        config: a file, or the name of an experiment such as
            "COCO/mask_rcnn_vit_adapter_s_deit_3x".

    Raises:
        ValueError: it is neither.
    """
    if is_file(config):
        return Path(config)
    try:
        return get_config_path(str(config))
    except ValueError as error:
        raise ValueError(
            f"{config} does not exist or is a folder, and is no experiment: {error}"
        ) from error


def is_experiment(path: Path) -> bool:
    """Whether a config is one of the experiments of the model zoo."""
    return path.is_relative_to(_EXPERIMENTS)


def load_experiment(config_file: str | Path) -> DictConfig:
    """Loads a config file, and lets its name say where the results go.

    A config that leaves `train.output_dir` at the default "./output" writes to
    ./output/<folder>/<name> of its file, such as ./output/COCO/mask_rcnn_vit_adapter_s_deit_1x.

    Args:
        config_file: an experiment, such as those of projects/ViTAdapter/configs.

    Raises:
        ValueError: the file defines no keys.
    """
    cfg = LazyConfig.load(str(config_file))
    if not isinstance(cfg, DictConfig):
        raise ValueError(f"--config-file {config_file} must define keys such as model and train")
    default = LazyConfig.load(str(get_config_path("common/train.py"))).train.output_dir
    if OmegaConf.select(cfg, "train.output_dir") == default:
        path = Path(config_file).resolve()
        cfg.train.output_dir = f"{default}/{path.parent.name}/{path.stem}"
    return cfg
