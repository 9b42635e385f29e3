"""COCO instances; `dataset.*` is all that a data set of your own has to override."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader
from omegaconf import ListConfig
from pycocotools.cocoeval import COCOeval

from vitadapter.data.coco import load_coco_dataset
from vitadapter.data.dataset_mapper import DatasetMapper, build_train_loader
from vitadapter.data.transforms import PadToSize, RandomChoice
from vitadapter.evaluation.coco import coco_evaluator

from .folder import folder as _folder

dataset = dict(
    **_folder,
    num_classes=80,
    train=dict(name="coco_2017_train", json_file=None, image_root=None),
    test=dict(name="coco_2017_val", json_file=None, image_root=None),
)

dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(load_coco_dataset)(
            name="${dataset.train.name}",
            json_file="${dataset.train.json_file}",
            image_root="${dataset.train.image_root}",
            num_classes="${dataset.num_classes}",
            masks=True,
            filter_empty=True,
            role="train",
            root="${dataset.root}",
        ),
        mapper=L(DatasetMapper)(
            is_train=True,
            augmentations=[
                L(T.ResizeShortestEdge)(
                    short_edge_length=(800,), sample_style="choice", max_size=1333
                ),
                L(T.RandomFlip)(horizontal=True),
            ],
            image_format="${model.input_format}",
            use_instance_mask="${..dataset.masks}",
        ),
        total_batch_size=16,
        num_workers=4,
    ),
    test=L(build_detection_test_loader)(
        dataset=L(load_coco_dataset)(
            name="${dataset.test.name}",
            json_file="${dataset.test.json_file}",
            image_root="${dataset.test.image_root}",
            num_classes="${dataset.num_classes}",
            masks="${dataloader.train.dataset.masks}",
            filter_empty=False,
            role="test",
            root="${dataset.root}",
        ),
        mapper=L(DatasetMapper)(
            is_train=False,
            augmentations=[
                L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333),
            ],
            image_format="${model.input_format}",
        ),
        batch_size=1,
        num_workers=4,
    ),
    evaluator=L(coco_evaluator)(
        name="${dataset.test.name}",
        json_file="${dataset.test.json_file}",
        image_root="${dataset.test.image_root}",
        output_dir="${train.output_dir}/inference",
        # Name of an entry to COCO's server, see dataset.test.name=coco_2017_test-dev.
        algorithm="vitadapter",
        # Of each category, those of highest score.
        max_dets_per_image=100,
        plot_curves=True,
        # vitadapter.evaluation.hotcoco.HotCocoEval computes the same numbers faster.
        cocoeval=COCOeval,
    ),
)

# 3x+MS: one of two branches, resize or resize-crop-resize, then a crop of at most 1024 pixels.
_short_edges = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
# A ListConfig, since LazyConfig.load leaves plain lists out.
multi_scale_augmentations = ListConfig(
    [
        L(T.RandomFlip)(horizontal=True),
        L(RandomChoice)(
            branches=[
                [
                    L(T.ResizeShortestEdge)(
                        short_edge_length=_short_edges, sample_style="choice", max_size=1333
                    )
                ],
                [
                    L(T.ResizeShortestEdge)(
                        short_edge_length=(400, 500, 600), sample_style="choice", max_size=1333
                    ),
                    L(T.RandomCrop)(crop_type="absolute_range", crop_size=(384, 600)),
                    L(T.ResizeShortestEdge)(
                        short_edge_length=_short_edges, sample_style="choice", max_size=1333
                    ),
                ],
            ]
        ),
        L(T.RandomCrop)(crop_type="absolute", crop_size=(1024, 1024)),
    ],
    flags={"allow_objects": True},
)

# LSJ: scaled by 0.1 to 2 against 1024 x 1024 pixels, cropped and padded to that size.
large_scale_jitter_augmentations = ListConfig(
    [
        L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=1024, target_width=1024),
        L(T.RandomCrop)(crop_type="absolute", crop_size=(1024, 1024)),
        L(T.RandomFlip)(horizontal=True),
        L(PadToSize)(size=(1024, 1024), pixel_value="${model.pixel_mean}"),
    ],
    flags={"allow_objects": True},
)

# Small images for small data: `dataset.resize = small_images` belongs to these.
small_images = dict(train_short=[192, 224, 256], short=224, long=448)
small_image_augmentations = ListConfig(
    [
        L(T.RandomFlip)(horizontal=True),
        L(T.ResizeShortestEdge)(
            short_edge_length="${dataset.resize.train_short}",
            sample_style="choice",
            max_size="${dataset.resize.long}",
        ),
    ],
    flags={"allow_objects": True},
)
small_image_test_augmentations = ListConfig(
    [
        L(T.ResizeShortestEdge)(
            short_edge_length="${dataset.resize.short}", max_size="${dataset.resize.long}"
        )
    ],
    flags={"allow_objects": True},
)
