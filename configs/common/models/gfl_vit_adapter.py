"""GFL on ViT-Adapter-T: ATSS with another head."""

from detectron2.config import LazyCall as L

from vitadapter.modeling.dense import GFLHead

from .atss_vit_adapter import model

model.head = L(GFLHead)(
    in_channels="${..backbone.out_channels}",
    num_levels=5,
    num_classes="${..num_classes}",
    num_bins=17,
    anchor_scale=8.0,
    conv_dims=[256, 256, 256, 256],
    norm="GN",
    quality_focal_beta=2.0,
    box_loss_weight=2.0,
    distribution_loss_weight=0.25,
)
