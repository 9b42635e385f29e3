from .mask_rcnn_vit_adapter_b_deit_1x import model
from .mask_rcnn_vit_adapter_s_deit_3x import dataloader, dataset, lr_multiplier, optimizer, train

train.init_checkpoint = "timm://deit_base_patch16_224.fb_in1k"
