"""What the training loop needs. `vitadapter.engine.settings` explains the keys and has the rest."""

from dataclasses import asdict

from detectron2.config import LazyCall as L

from vitadapter.engine.inference import InferenceModel
from vitadapter.engine.settings import CheckpointerSettings, TrainSettings
from vitadapter.modeling.inference import Tiles

# 12 epochs of COCO in batches of 16, each epoch of which is evaluated and saved.
train = asdict(
    TrainSettings(
        max_iter=87960,
        eval_period=7330,
        checkpointer=CheckpointerSettings(period=7330, max_to_keep=5),
        # Mixed precision of training is `train.amp`. Test-time augmentation (tta) is explained in
        # tta.py and sem_seg_tta.py. With a size, images are predicted in tiles of so many pixels.
        inference=L(InferenceModel)(
            model=None,
            amp_dtype=None,
            tta=dict(enabled=False, wrapper=None, overrides=[]),
            tiles=L(Tiles)(size=None),
        ),
    )
)
