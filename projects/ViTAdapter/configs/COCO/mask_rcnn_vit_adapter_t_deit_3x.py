from .mask_rcnn_vit_adapter_s_deit_3x import dataloader, dataset, lr_multiplier, optimizer, train
from .mask_rcnn_vit_adapter_t_deit_1x import model

train.init_checkpoint = "timm://deit_tiny_patch16_224.fb_in1k"
