from .mask_rcnn_vit_adapter_b_deit_3x import dataloader, dataset, lr_multiplier, optimizer, train
from .mask_rcnn_vit_b_deit_1x import model
