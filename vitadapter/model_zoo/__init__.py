"""The model zoo: configs by name, the trained models of the experiments, and predictors of these.

Example::

    from vitadapter import model_zoo

    model_zoo.list("COCO/*dinov2*")
    cfg = model_zoo.get_config("COCO/mask_rcnn_vit_adapter_s_deit_3x.py", trained=True)
    predictor = model_zoo.predictor("COCO/mask_rcnn_vit_adapter_s_deit_3x")

`vitadapter zoo` prints the experiments and their trained models.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import vitadapter.detectron2_required  # noqa: F401

# isort: split
from detectron2.config import LazyConfig
from omegaconf import DictConfig

from vitadapter.model_zoo.configs import (
    config_file,
    get_config_path,
    is_experiment,
    load_experiment,
)
from vitadapter.model_zoo.configs import list_experiments as list
from vitadapter.model_zoo.trained_models import zoo_address

if TYPE_CHECKING:
    from vitadapter.engine.predictor import LazyPredictor

__all__ = [
    "config_file",
    "get_config",
    "get_config_path",
    "list",
    "load_experiment",
    "predictor",
    "zoo_address",
]


def get_config(name: str, trained: bool = False) -> DictConfig:
    """Loads a config afresh, so that edits do not leak between experiments.

    Args:
        name: see `get_config_path`.
        trained: whether `train.init_checkpoint` is to be the published weights of the experiment,
            which are downloaded when they are loaded.

    Raises:
        ValueError: there is no such config, or no trained model of it.
    """
    weights = zoo_address(name) if trained else None
    path = get_config_path(name)
    cfg = load_experiment(path) if is_experiment(path) else LazyConfig.load(str(path))
    if trained:
        cfg.train.init_checkpoint = weights
    return cfg


def predictor(
    name: str, *, overrides: Sequence[str] = (), device: str | None = None
) -> "LazyPredictor":
    """A predictor with the published weights of an experiment, downloaded at the first use.

    Args:
        name: of the experiment, such as "COCO/mask_rcnn_vit_adapter_s_deit_3x".
        overrides: `key=value`, as on the command line.
        device: None for a GPU where there is one.

    Raises:
        ValueError: no such experiment, no trained model of it, weights that cannot be downloaded,
            or a wrong override.
    """
    # Here, because these read configs by this module.
    from vitadapter.engine.overrides import apply_overrides
    from vitadapter.engine.predictor import LazyPredictor

    return LazyPredictor(apply_overrides(get_config(name, trained=True), overrides), device=device)
