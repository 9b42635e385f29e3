"""The models that commands predict with: by name, config, checkpoint or exported file."""

from collections.abc import Sequence
from typing import Protocol

from detectron2.data.catalog import Metadata

from vitadapter.commands.arguments import check_exported_overrides, weights_of
from vitadapter.engine.checkpoint_config import is_checkpoint
from vitadapter.engine.inference import needed_answer, tiles_of
from vitadapter.engine.overrides import load_config
from vitadapter.engine.predictor import LazyPredictor, class_metadata
from vitadapter.export import ExportedPredictor
from vitadapter.export.evaluation import check_fits
from vitadapter.export.formats import is_exported
from vitadapter.model_zoo import config_file
from vitadapter.modeling.inference import Tiles

__all__ = ["Model", "Predictor", "find_model"]

Predictor = LazyPredictor | ExportedPredictor


# Of several, the first is shown, as `Found.of` does.
_SHOWN = ("panoptic_seg", "instances", "sem_seg")


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

    def answer(self) -> str | None:
        """What of a `Prediction` is shown of its images; None if that is not known."""

    def predictor(self) -> Predictor:
        """Loads it."""


class _ExportedModel:
    def __init__(self, config: str, file: str, tiles: Tiles | None) -> None:
        self._predictor = ExportedPredictor(file, tiles=tiles)
        self.config, self.weights = config, file

    def metadata(self) -> Metadata:
        return self._predictor.metadata

    def answer(self) -> str | None:
        return next((key for key in _SHOWN if key in self._predictor.description.answers), None)

    def predictor(self) -> ExportedPredictor:
        return self._predictor


class _ConfiguredModel:
    def __init__(
        self, config: str, weights: str | None, overrides: Sequence[str], tiles: Tiles | None
    ) -> None:
        self._tiles = tiles
        self.config = config if is_checkpoint(config) else str(config_file(config))
        self._cfg = load_config(self.config, overrides)
        self._given = None if weights is None else weights_of(config, weights, overrides)
        self.weights = self._given or str(self._cfg.train.init_checkpoint)

    def metadata(self) -> Metadata:
        return class_metadata(self._cfg, self.weights)

    def answer(self) -> str | None:
        return needed_answer(self._cfg)

    def predictor(self) -> Predictor:
        return LazyPredictor(self._cfg, self._given, tiles=self._tiles)


def find_model(
    config: str, weights: str | None, overrides: Sequence[str], tiles: Tiles | None = None
) -> Model:
    """The model of a command line.

    Args:
        config: name of an experiment, config file, checkpoint that carries its config, or file of
            `vitadapter export`.
        weights: see `weights_of`, or an exported file of the config's model; None for
            `train.init_checkpoint`.
        overrides: of the config.
        tiles: how large images are cut; None for what the config says.

    Raises:
        ValueError: there is no such model, an exported file is given weights or overrides, or it
            is that of another model.
        FileNotFoundError: there is no such exported file.
    """
    if is_exported(config):
        if overrides or weights not in (None, "zoo"):
            raise ValueError(
                f"{config} holds its weights and settings: leave out --weights and overrides"
            )
        return _ExportedModel(config, config, tiles)
    if weights is not None and is_exported(weights):
        check_exported_overrides(overrides)
        weights = weights_of(config, weights, overrides)
        config = config if is_checkpoint(config) else str(config_file(config))
        cfg = load_config(config, overrides)
        model = _ExportedModel(config, weights, tiles or tiles_of(cfg))
        check_fits(model.predictor().description, cfg)
        return model
    return _ConfiguredModel(config, weights, overrides, tiles)
