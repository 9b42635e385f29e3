from vitadapter.model_zoo import get_config

_data = get_config("common/data/coco.py")
dataset, dataloader = _data.dataset, _data.dataloader
model = get_config("common/models/mask_rcnn_vit_adapter.py").model
model.backbone.bottom_up = get_config("common/models/vit_adapter.py").vit_adapter_small
optimizer = get_config("common/optim.py").AdamW
lr_multiplier = get_config("common/schedule.py").schedule_1x
train = get_config("common/train.py").train
train.init_checkpoint = "timm://deit_small_patch16_224.fb_in1k"
train.inference.tta = get_config("common/tta.py").multi_scale_flip
