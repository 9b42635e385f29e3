"""Where the trained models of our experiments are: one entry for each that has been published.

The files are those of the official ViT-Adapter release and of Detectron2's ViTDet; the figures are
theirs too. To add a model, add its entry; `python -m vitadapter.model_zoo --hash FILE` prints the
size and the hash that it should have.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vitadapter.model_zoo.configs import experiment_name, is_file, list_experiments, near_names

__all__ = [
    "FLIP",
    "SCHEME",
    "TRAINED_MODELS",
    "TTA",
    "TrainedModel",
    "find_trained_model",
    "zoo_address",
]

SCHEME = "zoo://"
"""What stands before an experiment's name where its trained weights are meant."""

TTA = "train.inference.tta.enabled=True"
"""Override that tests with the experiment's own test-time augmentation."""

FLIP = f"{TTA} train.inference.tta.overrides=[] train.inference.tta.wrapper.resizes.ratios=[1.0]"
"""Overrides that test at one scale, each image also flipped."""

_RELEASE = "https://github.com/czczup/ViT-Adapter/releases/download/"
_HUB = "https://huggingface.co/czczup/ViT-Adapter/resolve/main/"
_VITDET = "https://dl.fbaipublicfiles.com/detectron2/ViTDet/"


@dataclass(frozen=True)
class TrainedModel:
    """Where the weights of an experiment are, and what was published for them.

    Attributes:
        url: of the file; one that ends in ".zip" holds the checkpoint.
        published: metrics of the test set in percent, such as `{"bbox/AP": 48.2}`, by the
            overrides that they were measured with ("" for none).
        size: of the checkpoint in bytes, unpacked; None where nobody has measured it yet.
        sha256: of the checkpoint, as 64 hexadecimal digits; None where nobody has computed it yet.
    """

    url: str
    published: Mapping[str, Mapping[str, float]]
    size: int | None = None
    sha256: str | None = None


TRAINED_MODELS: Mapping[str, TrainedModel] = {
    "ADE20K/mask2former_vit_adapter_l_beit_640_160k": TrainedModel(
        _RELEASE + "v0.2.2/mask2former_beit_adapter_large_640_160k_ade20k.zip",
        {"": {"sem_seg/mIoU": 58.3}, TTA: {"sem_seg/mIoU": 59.0}},
    ),
    "ADE20K/mask2former_vit_adapter_l_beit_896_80k": TrainedModel(
        _RELEASE + "v0.2.0/mask2former_beit_adapter_large_896_80k_ade20k.zip",
        {"": {"sem_seg/mIoU": 59.4}, TTA: {"sem_seg/mIoU": 60.5}},
    ),
    "ADE20K/mask2former_vit_adapter_l_beitv2_896_80k": TrainedModel(
        _RELEASE + "v0.3.1/mask2former_beitv2_adapter_large_896_80k_ade20k.zip",
        {FLIP: {"sem_seg/mIoU": 61.2}, TTA: {"sem_seg/mIoU": 61.5}},
    ),
    "ADE20K/upernet_vit_adapter_b_augreg_160k": TrainedModel(
        _RELEASE + "v0.3.1/upernet_augreg_adapter_base_512_160k_ade20k.pth.tar",
        {"": {"sem_seg/mIoU": 51.9}, TTA: {"sem_seg/mIoU": 52.5}},
    ),
    "ADE20K/upernet_vit_adapter_b_deit_160k": TrainedModel(
        _RELEASE + "v0.3.1/upernet_deit_adapter_base_512_160k_ade20k.pth.tar",
        {"": {"sem_seg/mIoU": 48.8}, TTA: {"sem_seg/mIoU": 49.7}},
    ),
    "ADE20K/upernet_vit_adapter_l_augreg_160k": TrainedModel(
        _RELEASE + "v0.3.1/upernet_augreg_adapter_large_512_160k_ade20k.pth.tar",
        {"": {"sem_seg/mIoU": 53.4}, TTA: {"sem_seg/mIoU": 54.4}},
    ),
    "ADE20K/upernet_vit_adapter_l_beit_160k": TrainedModel(
        _RELEASE + "v0.2.1/upernet_beit_adapter_large_640_160k_ade20k.pth.tar",
        {"": {"sem_seg/mIoU": 58.0}, TTA: {"sem_seg/mIoU": 58.4}},
    ),
    "ADE20K/upernet_vit_adapter_l_uniperceiver_160k": TrainedModel(
        _RELEASE + "v0.3.1/upernet_uniperceiver_adapter_large_512_160k_ade20k.pth",
        {"": {"sem_seg/mIoU": 55.0}, TTA: {"sem_seg/mIoU": 55.4}},
    ),
    "ADE20K/upernet_vit_adapter_s_deit_160k": TrainedModel(
        _RELEASE + "v0.3.1/upernet_deit_adapter_small_512_160k_ade20k.pth",
        {"": {"sem_seg/mIoU": 46.2}, TTA: {"sem_seg/mIoU": 47.1}},
    ),
    "ADE20K/upernet_vit_adapter_t_augreg_160k": TrainedModel(
        _RELEASE + "v0.3.1/upernet_augreg_adapter_tiny_512_160_ade20k.pth.tar",
        {"": {"sem_seg/mIoU": 43.9}, TTA: {"sem_seg/mIoU": 44.8}},
    ),
    "ADE20K/upernet_vit_adapter_t_deit_160k": TrainedModel(
        _RELEASE + "v0.3.1/upernet_deit_adapter_tiny_512_160_ade20k.pth.tar",
        {"": {"sem_seg/mIoU": 42.6}, TTA: {"sem_seg/mIoU": 43.6}},
    ),
    "COCO/atss_vit_adapter_s_deit_3x": TrainedModel(
        _RELEASE + "v0.1.5/atss_deit_adapter_small_fpn_3x_coco.pth.tar", {"": {"bbox/AP": 49.6}}
    ),
    "COCO/cascade_mask_rcnn_vit_adapter_b_deit_3x": TrainedModel(
        _RELEASE + "v0.3.1/cascade_mask_rcnn_deit_adapter_base_fpn_3x_coco.pth",
        {"": {"bbox/AP": 52.1, "segm/AP": 44.8}},
    ),
    "COCO/cascade_mask_rcnn_vit_adapter_s_deit_3x": TrainedModel(
        _RELEASE + "v0.1.3/cascade_mask_rcnn_deit_adapter_small_fpn_3x_coco.pth.tar",
        {"": {"bbox/AP": 51.5, "segm/AP": 44.3}},
    ),
    "COCO/cascade_mask_rcnn_vitdet_l_mae_lsj_100ep": TrainedModel(
        _VITDET + "COCO/cascade_mask_rcnn_vitdet_l/f328021305/model_final_1a9f28.pkl",
        {"": {"bbox/AP": 57.6, "segm/AP": 50.0}},
    ),
    "COCO/gfl_vit_adapter_s_deit_3x": TrainedModel(
        _RELEASE + "v0.1.6/gfl_deit_adapter_small_fpn_3x_coco.pth.tar", {"": {"bbox/AP": 50.0}}
    ),
    "COCO/htcpp_vit_adapter_l_augreg_3x": TrainedModel(
        _RELEASE + "v0.3.1/htc++_augreg_adapter_large_fpn_3x_coco.pth",
        {"": {"bbox/AP": 56.6, "segm/AP": 49.0}, TTA: {"bbox/AP": 57.7, "segm/AP": 49.9}},
    ),
    "COCO/htcpp_vit_adapter_l_beit_3x": TrainedModel(
        _RELEASE + "0.3.0/htc++_beit_adapter_large_fpn_3x_coco.pth.tar",
        {"": {"bbox/AP": 58.4, "segm/AP": 50.8}, TTA: {"bbox/AP": 60.2, "segm/AP": 52.2}},
    ),
    "COCO/htcpp_vit_adapter_l_beit_3x_old": TrainedModel(
        _RELEASE + "v0.1.0/htc++_beit_adapter_large_fpn_3x_coco_old.pth.tar",
        {"": {"bbox/AP": 57.9, "segm/AP": 50.2}},
    ),
    "COCO/htcpp_vit_adapter_l_beitv2_3x": TrainedModel(
        _RELEASE + "v0.3.1/htc++_beitv2_adapter_large_fpn_3x_coco.pth",
        {"": {"bbox/AP": 58.8, "segm/AP": 51.1}, TTA: {"bbox/AP": 60.5, "segm/AP": 52.5}},
    ),
    "COCO/htcpp_vit_adapter_l_beitv2_o365": TrainedModel(
        _RELEASE + "v0.3.1/htc++_beitv2_adapter_large_fpn_o365_coco.pth",
        {"": {"bbox/AP": 61.8, "segm/AP": 53.0}, TTA: {"bbox/AP": 62.6, "segm/AP": 54.2}},
    ),
    "COCO/mask_rcnn_vit_adapter_b_deit_3x": TrainedModel(
        _RELEASE + "v0.1.6/mask_rcnn_deit_adapter_base_fpn_3x_coco.pth.tar",
        {"": {"bbox/AP": 49.6, "segm/AP": 43.6}},
    ),
    "COCO/mask_rcnn_vit_adapter_b_dinov2_3x": TrainedModel(
        _HUB + "mask_rcnn_dinov2_adapter_base_fpn_3x_coco.pth",
        {"": {"bbox/AP": 54.1, "segm/AP": 47.8}},
    ),
    "COCO/mask_rcnn_vit_adapter_b_mae_lsj_25ep": TrainedModel(
        _RELEASE + "v0.1.4/mask_rcnn_mae_adapter_base_lsj_fpn_25ep_coco.pth.tar",
        {
            "": {"bbox/AP": 50.3, "segm/AP": 44.7},
            FLIP: {"bbox/AP": 50.3, "segm/AP": 44.7},
            TTA: {"bbox/AP": 50.3, "segm/AP": 44.7},
        },
    ),
    "COCO/mask_rcnn_vit_adapter_b_mae_lsj_50ep": TrainedModel(
        _RELEASE + "v0.1.4/mask_rcnn_mae_adapter_base_lsj_fpn_50ep_coco.pth.tar",
        {
            "": {"bbox/AP": 50.8, "segm/AP": 45.1},
            FLIP: {"bbox/AP": 50.8, "segm/AP": 45.1},
            TTA: {"bbox/AP": 50.8, "segm/AP": 45.1},
        },
    ),
    "COCO/mask_rcnn_vit_adapter_b_uniperceiver_3x": TrainedModel(
        _RELEASE + "v0.3.1/mask_rcnn_uniperceiver_adapter_base_fpn_3x_coco.pth",
        {"": {"bbox/AP": 51.2, "segm/AP": 45.3}},
    ),
    "COCO/mask_rcnn_vit_adapter_l_augreg_3x": TrainedModel(
        _RELEASE + "v0.3.1/mask_rcnn_augreg_adapter_large_fpn_3x_coco.pth",
        {"": {"bbox/AP": 52.1, "segm/AP": 46.0}},
    ),
    "COCO/mask_rcnn_vit_adapter_l_dinov2_3x": TrainedModel(
        _HUB + "mask_rcnn_dinov2_adapter_large_fpn_3x_coco.pth",
        {"": {"bbox/AP": 55.3, "segm/AP": 49.0}},
    ),
    "COCO/mask_rcnn_vit_adapter_s_deit_3x": TrainedModel(
        _RELEASE + "v0.1.2/mask_rcnn_deit_adapter_small_fpn_3x_coco.pth.tar",
        {"": {"bbox/AP": 48.2, "segm/AP": 42.8}},
    ),
    "COCO/mask_rcnn_vit_adapter_s_deit_3x_nofpn": TrainedModel(
        _RELEASE + "v0.1.6/mask_rcnn_deit_adapter_small_3x_coco.pth.tar",
        {"": {"bbox/AP": 48.2, "segm/AP": 42.7}},
    ),
    "COCO/mask_rcnn_vit_adapter_s_dinov2_3x": TrainedModel(
        _HUB + "mask_rcnn_dinov2_adapter_small_fpn_3x_coco.pth",
        {"": {"bbox/AP": 51.5, "segm/AP": 45.6}},
    ),
    "COCO/mask_rcnn_vit_adapter_t_deit_1x": TrainedModel(
        _HUB + "mask_rcnn_deit_adapter_tiny_fpn_1x_coco.pth",
        {"": {"bbox/AP": 41.1, "segm/AP": 37.5}},
    ),
    "COCO/mask_rcnn_vit_adapter_t_deit_3x": TrainedModel(
        _RELEASE + "v0.1.2/mask_rcnn_deit_adapter_tiny_fpn_3x_coco.pth.tar",
        {"": {"bbox/AP": 46.0, "segm/AP": 41.0}},
    ),
    "COCO/mask_rcnn_vit_b_deit_3x": TrainedModel(
        _RELEASE + "v0.3.1/mask_rcnn_deit_base_fpn_3x_coco.pth.tar",
        {"": {"bbox/AP": 45.8, "segm/AP": 41.3}},
    ),
    "COCO/mask_rcnn_vit_l_augreg_3x": TrainedModel(
        _RELEASE + "v0.3.1/mask_rcnn_augreg_large_fpn_3x_coco.pth.tar",
        {"": {"bbox/AP": 48.3, "segm/AP": 43.3}},
    ),
    "COCO/mask_rcnn_vit_s_deit_3x": TrainedModel(
        _RELEASE + "v0.3.1/mask_rcnn_deit_small_fpn_3x_coco.pth.tar",
        {"": {"bbox/AP": 44.0, "segm/AP": 39.9}},
    ),
    "COCO/mask_rcnn_vit_t_deit_3x": TrainedModel(
        _RELEASE + "v0.3.1/mask_rcnn_deit_tiny_fpn_3x_coco.pth.tar",
        {"": {"bbox/AP": 40.2, "segm/AP": 37.0}},
    ),
    "COCO/sparse_rcnn_vit_adapter_s_deit_3x": TrainedModel(
        _RELEASE + "v0.1.6/sparse_rcnn_deit_adapter_small_fpn_3x_coco.pth.tar",
        {"": {"bbox/AP": 48.1}},
    ),
    "COCOPanoptic/mask2former_vit_adapter_l_beitv2_3x": TrainedModel(
        _RELEASE + "panoptic/mask2former_beitv2_adapter_large_16x1_3x_coco-panoptic.pth",
        {
            "": {
                "panoptic_seg/PQ": 58.4,
                "panoptic_seg/PQ_th": 65.0,
                "panoptic_seg/PQ_st": 48.4,
                "bbox/AP": 52.9,
                "segm/AP": 48.9,
            }
        },
    ),
    "COCOStuff/mask2former_vit_adapter_b_beit_10k_512_40k": TrainedModel(
        _RELEASE + "v0.2.9/mask2former_beit_adapter_base_512_40k_cocostuff10k.pth.tar",
        {"": {"sem_seg/mIoU": 50.0}, TTA: {"sem_seg/mIoU": 50.5}},
    ),
    "COCOStuff/mask2former_vit_adapter_l_beit_10k_512_40k": TrainedModel(
        _RELEASE + "v0.2.5/mask2former_beit_adapter_large_512_40k_cocostuff10k.zip",
        {"": {"sem_seg/mIoU": 53.2}, TTA: {"sem_seg/mIoU": 54.2}},
    ),
    "COCOStuff/mask2former_vit_adapter_l_beit_164k_896_80k": TrainedModel(
        _RELEASE + "v0.2.6/mask2former_beit_adapter_large_896_80k_cocostuff164k.zip",
        {"": {"sem_seg/mIoU": 51.7}, TTA: {"sem_seg/mIoU": 52.0}},
    ),
    "COCOStuff/mask2former_vit_adapter_l_beitv2_164k_896_80k": TrainedModel(
        _RELEASE + "v0.3.1/mask2former_beitv2_adapter_large_896_80k_cocostuff164k.zip",
        {"": {"sem_seg/mIoU": 52.3}},
    ),
    "COCOStuff/upernet_vit_adapter_l_beit_10k_80k": TrainedModel(
        _RELEASE + "v0.2.4/upernet_beit_adapter_large_512_80k_cocostuff10k.pth.tar",
        {"": {"sem_seg/mIoU": 51.0}, TTA: {"sem_seg/mIoU": 51.4}},
    ),
    "COCOStuff/upernet_vit_adapter_l_beit_164k_80k": TrainedModel(
        _RELEASE + "v0.2.6/upernet_beit_adapter_large_640_80k_cocostuff164k.pth.tar",
        {"": {"sem_seg/mIoU": 50.5}, TTA: {"sem_seg/mIoU": 50.7}},
    ),
    "Cityscapes/mask2former_vit_adapter_l_beit_896_80k": TrainedModel(
        _RELEASE + "v0.2.3/mask2former_beit_adapter_large_896_80k_cityscapes.zip",
        {"": {"sem_seg/mIoU": 84.9}, TTA: {"sem_seg/mIoU": 85.8}},
    ),
    "Cityscapes/mask2former_vit_adapter_l_beit_mapillary_896_80k": TrainedModel(
        _RELEASE + "v0.2.3/mask2former_beit_adapter_large_896_80k_mapillary.zip", {}
    ),
    "PascalContext/mask2former_vit_adapter_b_beit_480_40k": TrainedModel(
        _RELEASE + "v0.2.8/mask2former_beit_adapter_base_480_40k_pascal_context_59.pth.tar",
        {"": {"sem_seg/mIoU": 64.0}, TTA: {"sem_seg/mIoU": 64.4}},
    ),
    "PascalContext/mask2former_vit_adapter_l_beit_480_40k": TrainedModel(
        _RELEASE + "v0.2.7/mask2former_beit_adapter_large_480_40k_pascal_context_59.zip",
        {"": {"sem_seg/mIoU": 67.8}, TTA: {"sem_seg/mIoU": 68.2}},
    ),
    "PascalContext/upernet_vit_adapter_l_beit_80k": TrainedModel(
        _RELEASE + "v0.2.7/upernet_beit_adapter_large_480_80k_pascal_context_59.pth.tar",
        {"": {"sem_seg/mIoU": 67.0}, TTA: {"sem_seg/mIoU": 67.5}},
    ),
}
"""By the name of the experiment."""


def find_trained_model(name: str) -> TrainedModel:
    """The trained model of an experiment.

    Args:
        name: of the experiment, such as "COCO/mask_rcnn_vit_adapter_s_deit_3x"; ".py" may follow.

    Raises:
        ValueError: there is no such experiment, or its weights have not been published; names those
            whose names are most like it.
    """
    name = experiment_name(name)
    if name in TRAINED_MODELS:
        return TRAINED_MODELS[name]
    experiments = list_experiments()
    if name in experiments:
        raise ValueError(
            f"no trained model of {name} has been published; the nearest experiments that have "
            f"one: {near_names(name, TRAINED_MODELS)}"
        )
    raise ValueError(
        f"the model zoo has no experiment {name!r}; near names: "
        f"{near_names(name, {*experiments, *TRAINED_MODELS})}"
    )


def zoo_address(config: str) -> str:
    """What `train.init_checkpoint` is set to for the published weights of an experiment.

    Args:
        config: name of the experiment, with or without ".py", or path of its file.

    Returns:
        Such as "zoo://COCO/mask_rcnn_vit_adapter_s_deit_3x".

    Raises:
        ValueError: see `find_trained_model`.
    """
    path = Path(config)
    parts = (path.absolute() if is_file(path) else path).parts
    name = experiment_name("/".join(parts[-2:]))
    find_trained_model(name)
    return SCHEME + name
