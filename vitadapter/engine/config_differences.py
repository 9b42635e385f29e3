"""Names what a resumed run does otherwise than its checkpoint, whose config it carries."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from vitadapter.engine.checkpoint_config import config_from_text, config_to_text

__all__ = ["name_differences"]

logger = logging.getLogger(__name__)

# What a change means, by the start of the key; the first that fits counts. None: it changes no
# weights, or is named where it is applied.
_MEANINGS: tuple[tuple[str, str | None], ...] = (
    ("optimizer", None),
    ("train.output_dir", None),
    ("train.init_", None),
    ("train.log_period", None),
    ("train.writers", None),
    ("train.report", None),
    ("train.pictures", None),
    ("train.checkpointer", None),
    ("train.best_checkpoint", None),
    ("train.eval_period", None),
    ("dataloader.train.num_workers", None),
    ("dataloader.test.num_workers", None),
    ("train.max_iter", "the learning rate goes on at its place in the new schedule"),
    ("lr_multiplier", "the learning rate goes on at its place in the new schedule"),
    ("train.seed", "all later random numbers and the order of the images are others"),
    ("train.accumulate_steps", "gradients are summed up differently"),
    ("dataloader.train.total_batch_size", "the data go on behind the images that were seen"),
    ("dataloader.train.sampler", "images may come again early, or late"),
    ("dataloader.train.dataset", "images may come again early, or late"),
    ("dataset.train", "images may come again early, or late"),
    ("dataset.root", "images may come again early, or late"),
    ("dataloader.train", "the model sees other images"),
    ("model", "the weights go on in a changed model"),
    ("train.ema", "the average goes on by other rules"),
    ("train.amp", "numbers are rounded differently"),
    ("train.device", "numbers are rounded differently"),
    ("train.parallel", "numbers are rounded differently"),
    ("train.ddp", "numbers are rounded differently"),
)
_OTHER = "evaluations are not comparable with earlier ones, or parts of your own differ"
_MOST = 8


def _leaves(node: object, key: str = "") -> Iterator[tuple[str, object]]:
    """The values of nested containers by their dotted keys."""
    if isinstance(node, Mapping | list | tuple) and node:
        items = node.items() if isinstance(node, Mapping) else enumerate(node)
        for name, value in items:
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node


def _plain(text: str) -> dict[str, object]:
    # With references as they stand, a change is named once, where it was made.
    return dict(_leaves(OmegaConf.to_container(config_from_text(text), resolve=False)))


def _meaning(key: str) -> str | None:
    fitting = (
        meaning
        for start, meaning in _MEANINGS
        if key == start or key.startswith(start if start.endswith("_") else f"{start}.")
    )
    return next(fitting, _OTHER)


def name_differences(path: Path, text: object, cfg: DictConfig) -> None:
    """Warns of each setting that changes the rest of a run.

    Args:
        path: of the checkpoint, for the message.
        text: the config that it carries; None if it has none.
        cfg: the config that the run continues with.
    """
    if text is None:
        logger.info("%s carries no config to compare this one with", path)
        return
    try:
        old, new = _plain(str(text)), _plain(config_to_text(cfg))
    except ValueError as error:
        logger.info("%s carries no config to compare this one with: %s", path, error)
        return
    absent = object()
    by_meaning: dict[str, list[str]] = {}
    for key in sorted({*old, *new}):
        before, after = old.get(key, absent), new.get(key, absent)
        meaning = _meaning(key)
        if meaning is None or before == after:
            continue
        words = ["absent" if value is absent else f"{value}"[:100] for value in (before, after)]
        by_meaning.setdefault(meaning, []).append(f"{key} was {words[0]}, is {words[1]}")
    for meaning, changes in by_meaning.items():
        more = f" and {len(changes) - _MOST} more" if len(changes) > _MOST else ""
        logger.warning(
            "the config is not that of %s: %s%s (%s)",
            path,
            "; ".join(changes[:_MOST]),
            more,
            meaning,
        )
