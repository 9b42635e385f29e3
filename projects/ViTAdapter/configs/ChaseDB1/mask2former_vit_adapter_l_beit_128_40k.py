from vitadapter.model_zoo import get_config

from ..Potsdam.mask2former_vit_adapter_l_beit_512_80k import (
    lr_multiplier,
    model,
    optimizer,
    train,
)

_data = get_config("common/data/chase_db1.py")
dataset, dataloader = _data.dataset, _data.dataloader
train.max_iter = 40000
