"""DINOv3 keeps its weights; adapter and Mask2Former are trained. Not an official recipe.

Schedule, augmentation and optimizer are those of Mask2Former's own COCO recipe.
"""

from detectron2.config import LazyCall as L

from vitadapter.model_zoo import get_config
from vitadapter.solver import ClippedAdamW, NoDecayOneDim

_data = get_config("common/data/coco_panoptic.py")
dataset, dataloader = _data.dataset, _data.dataloader
model = get_config("common/models/mask2former_vit_adapter.py").model_panoptic
model.backbone = get_config("common/models/timm_vit_adapter.py").vit_adapter_dinov3_small_frozen
optimizer = get_config("common/optim.py").AdamW
optimizer._target_ = ClippedAdamW
optimizer.max_norm = 0.01
optimizer.params.no_decay = L(NoDecayOneDim)()
lr_multiplier = get_config("common/schedule.py").schedule_3x
lr_multiplier.scheduler.update(milestones=[327778, 355092], num_updates=368750)
lr_multiplier.update(warmup_iters=10, warmup_factor=1.0)
train = get_config("common/train.py").train
train.max_iter = 368750
train.init_checkpoint = "timm://vit_small_patch16_dinov3.lvd1689m"
