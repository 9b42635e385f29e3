"""Writers to experiment trackers, which continue their run there when training is resumed."""

import importlib.util
import json
import logging
import os
import re
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["MLflowWriter", "Tracker", "WandbWriter", "check_installed"]

logger = logging.getLogger(__name__)

Value = TypeVar("Value")
Row = dict[str, float]
# (H, W, 3) uint8 RGB by name.
Pictures = dict[str, np.ndarray]

# Groups the runs where the tracker's own environment variable names no other group.
_PROJECT = "vitadapter"


def _pictures(storage: EventStorage) -> dict[int, Pictures]:
    """The pictures that no writer has taken yet, by their iteration."""
    found: dict[int, Pictures] = {}
    for name, image, iteration in storage._vis_data:  # Detectron2 has no other access
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8:
            pixels = (255 * pixels).round().astype(np.uint8)
        found.setdefault(iteration, {})[name] = pixels.transpose(1, 2, 0)
    return found


def check_installed(package: str) -> None:
    """Refuses the writer of a package that is missing.

    Raises:
        ValueError: says how to install it.
    """
    if importlib.util.find_spec(package) is None:
        wanted = package if package == "tensorboard" else f"'vitadapter[{package}]'"
        raise ValueError(
            f"train.writers needs the package {package}, which is not installed: "
            f"pip install {wanted}"
        )


class Tracker(EventWriter):
    """A writer to an experiment tracker, which continues its run there when the run is resumed.

    The tracker's name of the run, and the last iteration of each scalar, are kept in the output
    folder, so that nothing is written twice even if training goes back to an older checkpoint.

    Args:
        output_dir: the output folder, after which the run is named.
    """

    package: str
    """What to import; also the name of the extra that installs it."""

    def __init__(self, output_dir: str) -> None:
        self._folder = Path(output_dir)
        self._state = self._folder / f"{self.package}_run.json"
        self._written: dict[str, int] = {}  # the last iteration of each scalar and picture
        self._is_open = False
        self.has_failed = True
        """Whether training ended early; set it before `close`."""

    @property
    def run_name(self) -> str:
        """The output folder without what all runs have in common."""
        parts = self._folder.parts
        return str(Path(*parts[1:]) if parts[:1] == ("output",) else self._folder)

    def start(self, config: Mapping[str, object], *, is_resumed: bool) -> None:
        """Starts the run in the tracker, or continues it.

        Args:
            config: of the run, as plain containers.
            is_resumed: whether the run has been started before.

        Raises:
            ValueError: the tracker refuses the run or cannot be reached; says what to do.
        """
        check_installed(self.package)
        run_id = None
        if is_resumed and self._state.is_file():
            try:
                state = json.loads(self._state.read_text())
                run_id, self._written = str(state["id"]), dict(state["written"])
            except (ValueError, LookupError, TypeError) as error:
                logger.warning("%s is damaged: a new run is started (%s)", self._state, error)
        self._id = self._start(run_id, config)
        self._is_open = True
        self._folder.mkdir(parents=True, exist_ok=True)
        self._keep()

    def _keep(self) -> None:
        partial = self._state.with_suffix(".partial")
        partial.write_text(json.dumps({"id": self._id, "written": self._written}))
        partial.replace(self._state)

    def write(self) -> None:
        """Writes what is new. If the tracker cannot be reached, training goes on."""
        storage = get_event_storage()
        scalars: dict[int, Row] = {}
        for name, (value, iteration) in storage.latest_with_smoothing_hint().items():
            scalars.setdefault(iteration, {})[name] = value
        pictures = _pictures(storage)
        for iteration in sorted({*scalars, *pictures}):
            row = self._new(scalars.get(iteration, {}), iteration)
            images = self._new(pictures.get(iteration, {}), iteration)
            if not row and not images:
                continue
            try:
                self._log(iteration, row, images)
            except Exception as error:  # whatever the network and the tracker's package raise
                logger.warning("%s did not take iteration %d: %s", self.package, iteration, error)
            self._written.update(dict.fromkeys((*row, *images), iteration))
        self._keep()

    def _new(self, named: dict[str, Value], iteration: int) -> dict[str, Value]:
        """What has not been written for this iteration or a later one."""
        return {k: v for k, v in named.items() if self._written.get(k, -1) < iteration}

    def close(self) -> None:
        """Ends the run in the tracker."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            self._close(self.has_failed)
        except Exception as error:
            logger.warning("%s could not end the run: %s", self.package, error)

    @abstractmethod
    def _start(self, run_id: str | None, config: Mapping[str, object]) -> str:
        """Starts a run, or continues the one of this name; returns its name in the tracker."""

    @abstractmethod
    def _log(self, iteration: int, scalars: Row, pictures: Pictures) -> None:
        """Sends scalars and pictures of an iteration."""

    @abstractmethod
    def _close(self, has_failed: bool) -> None:
        """Ends the run."""


class WandbWriter(Tracker):
    """Writes to Weights & Biases. `WANDB_MODE=offline` keeps the run in the output folder.

    Args:
        output_dir: the output folder, after which the run is named.
        project: the project there; None for that of `WANDB_PROJECT`, or else "vitadapter".
        entity: the team or user there; None for the account's own.

    Raises:
        ValueError: by `start`, if nobody is logged in.
    """

    package = "wandb"

    def __init__(
        self, output_dir: str, *, project: str | None = None, entity: str | None = None
    ) -> None:
        super().__init__(output_dir)
        self._project, self._entity = project, entity

    def _start(self, run_id: str | None, config: Mapping[str, object]) -> str:
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run: wandb.Run = wandb.init(
                project=self._project or os.environ.get("WANDB_PROJECT", _PROJECT),
                entity=self._entity,
                id=run_id,
                name=self.run_name,
                dir=str(self._folder),
                config=dict(config),
                resume="allow",
                # Another run of this process stays what it is.
                reinit="create_new",
                settings=wandb.Settings(silent=True),
            )
        except wandb.Error as error:
            raise ValueError(
                f"train.writers: wandb cannot start a run ({error}): log in, or keep the run on "
                "this machine with WANDB_MODE=offline in the environment (`wandb sync` sends it)"
            ) from error
        place = "offline, in the output folder" if self._run.offline else self._run.url
        logger.info("Weights & Biases: run %s, %s", self._run.id, place)
        return self._run.id

    def _log(self, iteration: int, scalars: Row, pictures: Pictures) -> None:
        import wandb

        images = {name: wandb.Image(pixels) for name, pixels in pictures.items()}
        self._run.log({**scalars, **images}, step=iteration)

    def _close(self, has_failed: bool) -> None:
        self._run.finish(exit_code=int(has_failed))


def _leaves(node: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The values of nested containers as text, by dotted keys."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list) and any(isinstance(value, Mapping | list) for value in node):
        yield from _leaves(dict(enumerate(node)), prefix)
    else:
        yield prefix, str(node)


class MLflowWriter(Tracker):
    """Writes to MLflow, to the server or folder that `MLFLOW_TRACKING_URI` names.

    Args:
        output_dir: the output folder, after which the run is named.
        experiment: the experiment there; None for that of `MLFLOW_EXPERIMENT_NAME`, or else
            "vitadapter".

    Raises:
        ValueError: by `start`, if MLflow's server or folder cannot be used.
    """

    package = "mlflow"

    def __init__(self, output_dir: str, *, experiment: str | None = None) -> None:
        super().__init__(output_dir)
        self._experiment = experiment

    def _start(self, run_id: str | None, config: Mapping[str, object]) -> str:
        import mlflow

        try:
            self._client: MlflowClient = mlflow.MlflowClient()
            run = self._find(run_id) or self._create()
            self._run_id = run.info.run_id
            self._client.update_run(self._run_id, status="RUNNING", name=self.run_name)
            self._log_config(config, known=run.data.params)
        except Exception as error:  # of the store that the address stands for
            raise ValueError(
                f"train.writers: MLflow cannot start a run at {mlflow.get_tracking_uri()} "
                f"({str(error).strip()}): set MLFLOW_TRACKING_URI in the environment"
            ) from error
        logger.info("MLflow: run %s at %s", self._run_id, mlflow.get_tracking_uri())
        return self._run_id

    def _find(self, run_id: str | None) -> Any:
        """The run of this name, or None."""
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return None
        try:
            return self._client.get_run(run_id)
        except MlflowException as error:
            logger.warning("MLflow has no run %s any more: a new one is started", run_id)
            logger.debug("MLflow: %s", error)
            self._written = {}
            return None

    def _create(self) -> Any:
        name = self._experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self._client.get_experiment_by_name(name)
        number = self._client.create_experiment(name) if found is None else found.experiment_id
        return self._client.create_run(number, run_name=self.run_name)

    def _log_config(self, config: Mapping[str, object], known: Mapping[str, str]) -> None:
        """Logs parameters, which MLflow never changes again, and the whole config as a file."""
        from mlflow.entities import Param

        params = [Param(key, text) for key, text in _leaves(config) if key not in known]
        self._client.log_batch(self._run_id, params=params)
        self._client.log_dict(self._run_id, dict(config), "config.yaml")

    def _log(self, iteration: int, scalars: Row, pictures: Pictures) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        # MLflow refuses other letters, which the names of classes may have.
        names = {name: re.sub(r"[^\w.\- :/]", "_", name) for name in scalars}
        metrics = [Metric(names[name], value, now, iteration) for name, value in scalars.items()]
        self._client.log_batch(self._run_id, metrics=metrics)
        for name, pixels in pictures.items():
            self._client.log_image(self._run_id, pixels, key=name, step=iteration)

    def _close(self, has_failed: bool) -> None:
        self._client.set_terminated(self._run_id, "FAILED" if has_failed else "FINISHED")
