"""The models that commands predict with: by name, config, checkpoint or exported file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from detectron2.data.catalog import Metadata

from vitadapter.commands.arguments import weights_of
from vitadapter.engine.checkpoint_config import is_checkpoint
from vitadapter.engine.overrides import load_config
from vitadapter.engine.predictor import LazyPredictor, class_metadata
from vitadapter.export import ExportedPredictor
from vitadapter.export.formats import FORMATS
from vitadapter.model_zoo import config_file

__all__ = ["Model", "Predictor", "find_model"]

Predictor = LazyPredictor | ExportedPredictor


class Model(Protocol):
    """A model that has been found.

    Attributes:
        config: file of its config, or the exported file.
        weights: checkpoint file or address, or the exported file.
    """

    config: str
    weights: str

    def metadata(self) -> Metadata:
        """What is known of its classes, before published weights are downloaded."""

    def predictor(self) -> Predictor:
        """Loads it."""


class _ExportedModel:
    def __init__(self, file: Path) -> None:
        self._predictor = ExportedPredictor(file)
        self.config = self.weights = str(file)

    def metadata(self) -> Metadata:
        return self._predictor.metadata

    def predictor(self) -> Predictor:
        return self._predictor


class _ConfiguredModel:
    def __init__(self, config: str, weights: str | None, overrides: Sequence[str]) -> None:
        self.config = config if is_checkpoint(config) else str(config_file(config))
        self._cfg = load_config(self.config, overrides)
        self._given = None if weights is None else weights_of(config, weights)
        self.weights = self._given or str(self._cfg.train.init_checkpoint)

    def metadata(self) -> Metadata:
        return class_metadata(self._cfg, self.weights)

    def predictor(self) -> Predictor:
        return LazyPredictor(self._cfg, self._given)


def find_model(config: str, weights: str | None, overrides: Sequence[str]) -> Model:
    """The model of a command line.

    Args:
        config: name of an experiment, config file, checkpoint that carries its config, or file of
            `vitadapter export`.
        weights: see `weights_of`; None for `train.init_checkpoint`.
        overrides: of the config.

    Raises:
        ValueError: there is no such model, or an exported file is given weights or overrides.
        FileNotFoundError: there is no such exported file.
    """
    path = Path(config)
    if path.suffix not in {each.suffix for each in FORMATS.values()}:
        return _ConfiguredModel(config, weights, overrides)
    if overrides or weights not in (None, "zoo"):
        raise ValueError(
            f"{path} holds its weights and settings: leave out --weights and overrides"
        )
    return _ExportedModel(path)
