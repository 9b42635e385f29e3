from vitadapter.model_zoo import get_config

from ..COCOStuff.mask2former_vit_adapter_l_beit_10k_512_40k import (
    lr_multiplier,
    model,
    optimizer,
    train,
)

_data = get_config("common/data/pascal_context.py")
dataset, dataloader = _data.dataset, _data.dataloader
