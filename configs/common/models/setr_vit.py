"""SETR-PUP on ViT-L, as in the recipe for ADE20K: global attention, and heads on four blocks."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from vitadapter.modeling.backbone import ViTFeatures
from vitadapter.modeling.semantic import HeadWithAuxiliary, SemanticSegmentor, SETRUpHead

from ..pixels import imagenet
from .sizes import all_global
from .upernet_vit_adapter import model as _upernet
from .vit import vit_large

_net = vit_large.copy()
_net.update(
    **all_global,
    drop_path_rate=0.0,
    layer_scale_init=None,
    pretrain_img_size="${dataset.crop.size}",
)

_head = L(SETRUpHead)(
    input_shape={
        f"block{i}": L(ShapeSpec)(channels="${model.backbone.net.embed_dim}", stride=16)
        for i in (9, 14, 19, 23)
    },
    in_feature="block23",
    num_classes="${dataset.num_classes}",
    channels=256,
    num_convs=4,
    up_scale=2,
    norm="SyncBN",
    dropout=0.0,
    loss_weight=1.0,
    ignore_value="${dataset.ignore_label}",
)

_auxiliary = L(SETRUpHead)(
    input_shape="${model.sem_seg_head.head.input_shape}",
    in_feature="block9",
    num_classes="${dataset.num_classes}",
    channels="${model.sem_seg_head.head.channels}",
    num_convs=2,
    up_scale=4,
    norm="${model.sem_seg_head.head.norm}",
    dropout=0.0,
    loss_weight=0.4,
    loss_name="loss_sem_seg_block9",
    ignore_value="${dataset.ignore_label}",
)
_auxiliary_14, _auxiliary_19 = _auxiliary.copy(), _auxiliary.copy()
_auxiliary_14.update(in_feature="block14", loss_name="loss_sem_seg_block14")
_auxiliary_19.update(in_feature="block19", loss_name="loss_sem_seg_block19")

model = L(SemanticSegmentor)(
    backbone=L(ViTFeatures)(net=_net, block_indexes=[9, 14, 19, 23]),
    sem_seg_head=L(HeadWithAuxiliary)(
        head=_head, auxiliary_head=[_auxiliary, _auxiliary_14, _auxiliary_19]
    ),
    **imagenet,
    inference=_upernet.inference,
)
