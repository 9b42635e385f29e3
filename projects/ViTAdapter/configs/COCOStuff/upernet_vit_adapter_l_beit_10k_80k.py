from vitadapter.model_zoo import get_config

from ..ADE20K.upernet_vit_adapter_l_beit_160k import lr_multiplier, model, optimizer, train

_data = get_config("common/data/coco_stuff.py")
dataset, dataloader = _data.dataset_10k, _data.dataloader
train.max_iter = 80000
