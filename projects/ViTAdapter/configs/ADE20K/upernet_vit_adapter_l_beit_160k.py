"""BEiT in crops of 640 pixels."""

from vitadapter.model_zoo import get_config

from .upernet_vit_adapter_t_deit_160k import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

dataset.resize.short = 640
dataset.crop.update(size=640, stride=426)
model.backbone = get_config("common/models/beit.py").vit_adapter_beit_large_global
model.backbone.net.img_size = "${dataset.crop.size}"
model.backbone.net.use_act_checkpoint = True
model.sem_seg_head.head.channels = 1024
optimizer.lr = 2e-5
optimizer.weight_decay = 0.05
optimizer.params.lr_factor_func.rate = 0.9
train.amp.enabled = False
train.init_checkpoint = "timm://beit_large_patch16_224.in22k_ft_in22k"
train.inference.tta = get_config("common/sem_seg_tta.py").multi_scale_flip_beit
