from detectron2.config import LazyCall as L

from vitadapter.model_zoo import get_config
from vitadapter.solver import LayerDecay, NoDecayOneDim

_data = get_config("common/data/coco_stuff.py")
dataset, dataloader = _data.dataset, _data.dataloader
dataset.resize.update(short=640, long=2560)
dataset.crop.update(size=640, stride=426)
model = get_config("common/models/upernet_vit_adapter.py").model
model.backbone = get_config("common/models/beit.py").vit_adapter_beit_large_global
model.backbone.net.img_size = "${dataset.crop.size}"
model.backbone.net.use_act_checkpoint = True
model.sem_seg_head.head.channels = 1024
optimizer = get_config("common/optim.py").AdamW
optimizer.lr = 2e-5
optimizer.params.no_decay = L(NoDecayOneDim)()
optimizer.params.lr_factor_func = L(LayerDecay)(rate=0.9, num_layers="${model.backbone.net.depth}")
lr_multiplier = get_config("common/schedule.py").schedule_poly
train = get_config("common/sem_seg_train.py").train
train.max_iter = 80000
train.init_checkpoint = "timm://beit_large_patch16_224.in22k_ft_in22k"
train.output_dir = "./output/upernet_vit_adapter_l_beit_164k_80k"
