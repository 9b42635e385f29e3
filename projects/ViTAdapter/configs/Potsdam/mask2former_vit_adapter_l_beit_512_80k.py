from vitadapter.model_zoo import get_config

from ..ADE20K.mask2former_vit_adapter_l_beit_640_160k import (
    lr_multiplier,
    model,
    optimizer,
    train,
)

_data = get_config("common/data/potsdam.py")
dataset, dataloader = _data.dataset, _data.dataloader
model.sem_seg_head = get_config("common/models/mask2former_vit_adapter.py").model.sem_seg_head
model.sem_seg_head.pixel_decoder.ffn_dim = 2048
train.max_iter = 80000
