"""The tiny detector, in a run whose second process is killed in its third iteration, once."""

import os
import signal
import time
from pathlib import Path

from detectron2.config import LazyConfig
from detectron2.utils import comm
from training_samples import act


def _die_once(sample: dict) -> None:
    mark = Path(os.environ["KILLED_ONCE"])
    if comm.get_rank() == 1 and not mark.exists():
        mark.touch()
        time.sleep(1)  # the other process waits for this one by then
        os.kill(os.getpid(), signal.SIGKILL)


_cfg = LazyConfig.load(str(Path(__file__).with_name("tiny_mask_rcnn.py")))
act(_cfg, _die_once, at=2)
model, dataset, dataloader = _cfg.model, _cfg.dataset, _cfg.dataloader
optimizer, lr_multiplier, train = _cfg.optimizer, _cfg.lr_multiplier, _cfg.train
