"""ViTDet's LVIS recipe; the federated loss is `model.roi_heads.box_predictor.use_fed_loss=True`."""

from detectron2.config import LazyCall as L

from vitadapter.data.lvis import FederatedClassWeights
from vitadapter.model_zoo import get_config

from ..COCO.mask_rcnn_vit_adapter_b_mae_lsj_50ep import lr_multiplier, model, optimizer, train

_data = get_config("common/data/lvis.py")
dataset, dataloader = _data.dataset, _data.dataloader

model.roi_heads.box_predictor.update(
    test_score_thresh=0.02,
    test_topk_per_image=300,
    use_sigmoid_ce=True,
    use_fed_loss=False,
    get_fed_loss_cls_weights=L(FederatedClassWeights)(
        name="${dataset.train.name}", json_file="${dataset.train.json_file}", power=0.5
    ),
)
# 100 epochs of 100 thousand images
train.max_iter = 625000
train.inference.tta.wrapper.max_detections_per_image = 300
