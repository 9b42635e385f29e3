from vitadapter.model_zoo import get_config

_data = get_config("common/data/ade20k.py")
dataset, dataloader = _data.dataset, _data.dataloader
model = get_config("common/models/semantic_fpn_vit_adapter.py").model
# The paper says "the settings of PVT", which decays every weight.
optimizer = get_config("common/optim.py").AdamW
optimizer.lr = 1e-4
optimizer.weight_decay = 1e-4
optimizer.params.no_decay.substrings = []
lr_multiplier = get_config("common/schedule.py").schedule_poly
lr_multiplier.scheduler.power = 0.9
lr_multiplier.warmup_iters = 0
train = get_config("common/sem_seg_train.py").train
train.max_iter = 80_000
train.init_checkpoint = "timm://deit_tiny_patch16_224.fb_in1k"
