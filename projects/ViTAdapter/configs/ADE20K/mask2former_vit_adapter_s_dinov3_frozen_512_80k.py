"""DINOv3 keeps its weights; adapter and Mask2Former are trained. Not an official recipe."""

from detectron2.config import LazyCall as L

from vitadapter.model_zoo import get_config
from vitadapter.solver import NoDecayOneDim

_data = get_config("common/data/ade20k.py")
dataset, dataloader = _data.dataset, _data.dataloader
model = get_config("common/models/mask2former_vit_adapter.py").model
model.backbone = get_config("common/models/timm_vit_adapter.py").vit_adapter_dinov3_small_frozen
model.targets.ignore_value = "${dataset.ignore_label}"
model.inference = get_config("common/models/upernet_vit_adapter.py").model.inference
optimizer = get_config("common/optim.py").AdamW
optimizer.lr = 1e-4
optimizer.params.no_decay = L(NoDecayOneDim)()
lr_multiplier = get_config("common/schedule.py").schedule_poly
train = get_config("common/sem_seg_train.py").train
train.max_iter = 80_000
train.init_checkpoint = "timm://vit_small_patch16_dinov3.lvd1689m"
