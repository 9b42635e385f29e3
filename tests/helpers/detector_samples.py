"""Every detector of the project, whole but tiny, and images to train and test it with."""

from collections.abc import Sequence

import numpy as np
import torch
from dense_configs import dense_config, shrink_dense
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances, PolygonMasks
from omegaconf import DictConfig
from project_configs import CONFIGS, heads_of, load, shrink
from torch import nn

from vitadapter.model_zoo import get_config

_R_CNNS = {
    "mask_rcnn": "mask_rcnn_vit_adapter_s_deit_3x",
    "cascade_mask_rcnn": "cascade_mask_rcnn_vit_adapter_s_deit_3x",
    "htcpp": "htcpp_vit_adapter_l_augreg_3x",
}
_DENSE = ("atss", "gfl", "sparse_rcnn")
DETECTORS = ("mask_rcnn", "cascade_mask_rcnn", "htc", "htcpp", *_DENSE)


def tiny_config(name: str) -> DictConfig:
    """The experiment of one of `DETECTORS`, or its model base where it has none, cut down."""
    if name in _DENSE:
        return shrink_dense(dense_config(name))
    if name == "htc":
        cfg = tiny_config("cascade_mask_rcnn")
        cfg.model = get_config("common/models/htc_vit_adapter.py").model
    else:
        cfg = load(next(path for path in CONFIGS if path.stem == _R_CNNS[name]))
    cfg = shrink(cfg)
    cfg.model.proposal_generator.post_nms_topk = (50, 50)
    for predictor in heads_of(cfg.model.roi_heads, "box_predictor"):
        predictor.test_topk_per_image = 10
    return cfg


def tiny_detector(name: str) -> nn.Module:
    """One of `DETECTORS` with random weights whose scores differ and whose adapter takes part."""
    torch.manual_seed(0)
    model = instantiate(tiny_config(name).model)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "gamma" in parameter_name:  # zero initially: the adapter would not reach the net
                parameter.fill_(0.5)
            elif "cls_score" in parameter_name and parameter.ndim > 1:
                parameter.mul_(30)
    return model


def make_image(size: tuple[int, int], seed: int = 0) -> dict[str, object]:
    """An input of (height, width) pixels, for which twice that size is wanted."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    return {"image": image, "height": 2 * size[0], "width": 2 * size[1]}


def make_targets(boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> Instances:
    """Ground truth of class 0, 1, ... with masks that fill the boxes (x0, y0, x1, y1)."""
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.arange(len(boxes))
    instances.gt_masks = PolygonMasks(
        [[np.array([x0, y0, x1, y0, x1, y1, x0, y1], dtype=float)] for x0, y0, x1, y1 in boxes]
    )
    return instances
