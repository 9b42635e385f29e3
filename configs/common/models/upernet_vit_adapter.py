"""UPerNet on ViT-Adapter-T; other sizes and baselines replace `model.backbone`."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from vitadapter.modeling.inference import SlidingWindow
from vitadapter.modeling.semantic import FCNHead, HeadWithAuxiliary, SemanticSegmentor, UPerHead

from ..pixels import imagenet
from .vit_adapter_global import vit_adapter_tiny_global

model = L(SemanticSegmentor)(
    backbone=vit_adapter_tiny_global,
    sem_seg_head=L(HeadWithAuxiliary)(
        head=L(UPerHead)(
            input_shape={
                f"res{i}": L(ShapeSpec)(channels="${model.backbone.net.embed_dim}", stride=2**i)
                for i in range(2, 6)
            },
            num_classes="${dataset.num_classes}",
            channels=512,
            pool_scales=[1, 2, 3, 6],
            norm="SyncBN",
            dropout=0.1,
            loss_weight=1.0,
            ignore_value="${dataset.ignore_label}",
        ),
        auxiliary_head=L(FCNHead)(
            input_shape="${..head.input_shape}",
            in_feature="res4",
            num_classes="${dataset.num_classes}",
            channels=256,
            num_convs=1,
            norm="${..head.norm}",
            dropout=0.1,
            loss_weight=0.4,
            ignore_value="${dataset.ignore_label}",
        ),
    ),
    **imagenet,
    inference=L(SlidingWindow)(
        crop_size=["${dataset.crop.size}", "${dataset.crop.size}"],
        stride=["${dataset.crop.stride}", "${dataset.crop.stride}"],
        pad_to_crop=False,
        windows_per_batch=1,
    ),
)
