from vitadapter.model_zoo import get_config

from ..ADE20K.mask2former_vit_adapter_l_beit_896_80k import (
    lr_multiplier,
    model,
    optimizer,
    train,
)

_data = get_config("common/data/coco_stuff.py")
dataset, dataloader = _data.dataset, _data.dataloader
dataset.resize.update(short=896, long=3584)
dataset.crop.update(size=896, stride=512)
train.init_checkpoint = "timm://beit_large_patch16_224.in22k_ft_in22k"
