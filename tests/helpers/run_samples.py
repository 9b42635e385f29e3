"""Output folders of small training runs, written by Detectron2's own JSONWriter."""

from collections.abc import Mapping
from pathlib import Path

from detectron2.utils.events import EventStorage, JSONWriter

LOSSES = {"loss_cls": 0.5, "loss_box_reg": 0.3, "loss_mask": 0.2}


def write_run(
    folder: Path,
    start: int = 0,
    stop: int = 40,
    *,
    period: int = 10,
    seconds: float | None = 1.5,
    scale: float = 1.0,
    results: Mapping[str, float] | None = None,
) -> Path:
    """Trains nothing from iteration `start` to `stop`; called again, it resumes the run.

    The total loss in iteration `i` is `scale * (1 + 10 / (i + 1))`; `results` are of an
    evaluation after the last iteration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = JSONWriter(str(folder / "metrics.json"), window_size=1)
    with EventStorage(start) as storage:
        for iteration in range(start, stop):
            total = scale * (1 + 10 / (iteration + 1))
            storage.put_scalar("total_loss", total)
            storage.put_scalars(**{k: share * total for k, share in LOSSES.items()})
            storage.put_scalar("lr", 1e-3 * (1 - iteration / 100), smoothing_hint=False)
            if seconds is not None and iteration >= start + 3:
                storage.put_scalar("time", seconds)
            if (iteration + 1) % period == 0:
                writer.write()
            storage.step()
        if results:
            storage.put_scalars(**results, smoothing_hint=False)
        writer.write()
    writer.close()
    return folder
