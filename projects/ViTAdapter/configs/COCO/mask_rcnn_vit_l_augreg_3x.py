from .mask_rcnn_vit_adapter_l_augreg_3x import dataloader, dataset, lr_multiplier, optimizer, train
from .mask_rcnn_vit_l_augreg_1x import model
