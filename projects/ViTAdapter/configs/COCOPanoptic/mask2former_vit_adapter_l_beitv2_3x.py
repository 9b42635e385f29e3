from detectron2.config import LazyCall as L

from vitadapter.model_zoo import get_config
from vitadapter.solver import ClippedAdamW, LayerDecay, NoDecayOneDim

_data = get_config("common/data/coco_panoptic.py")
dataset, dataloader = _data.dataset, _data.dataloader
dataloader.train.mapper.augmentations = _data.multi_scale_augmentations
model = get_config("common/models/mask2former_vit_adapter.py").model_panoptic
model.backbone = get_config("common/models/beit.py").vit_adapter_beit_large
optimizer = get_config("common/optim.py").AdamW
optimizer._target_ = ClippedAdamW
optimizer.max_norm = 0.01
optimizer.params.no_decay = L(NoDecayOneDim)()
optimizer.params.lr_factor_func = L(LayerDecay)(rate=0.9, num_layers="${model.backbone.net.depth}")
lr_multiplier = get_config("common/schedule.py").schedule_3x
lr_multiplier.scheduler.update(milestones=[191750, 236000], num_updates=265500)
lr_multiplier.update(warmup_iters=10, warmup_factor=1.0)
train = get_config("common/train.py").train
# 36 epochs of 118000 images.
train.max_iter = 265500
train.ema = dict(enabled=True, decay=0.9999, ramp_iters=2000)
train.init_checkpoint = "timm://beitv2_large_patch16_224.in1k_ft_in22k"
