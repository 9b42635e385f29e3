"""COCO's 80 things and 53 kinds of stuff; `dataset.*` is all that data of your own override.

Training images pass the large-scale jitter of Mask2Former's own recipe, 1024 x 1024 pixels;
`multi_scale_augmentations` are those of the official ViT-Adapter recipe.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader

from vitadapter.data.dataset_mapper import build_train_loader
from vitadapter.data.panoptic import PanopticDatasetMapper, load_panoptic_dataset
from vitadapter.evaluation.panoptic import panoptic_evaluator

from .coco import large_scale_jitter_augmentations, multi_scale_augmentations
from .folder import folder as _folder

dataset = dict(
    **_folder,
    num_classes=133,
    # The first so many classes.
    num_things=80,
    train=dict(
        name="coco_2017_train_panoptic", json_file=None, panoptic_root=None, image_root=None
    ),
    test=dict(
        name="coco_2017_val_panoptic",
        json_file=None,
        panoptic_root=None,
        image_root=None,
        # The things in COCO's instances format, for their AP; not needed for PQ.
        instances_json=None,
    ),
)

# The crop to at most 1024 x 1024 pixels, which the official panoptic recipe does not have.
del multi_scale_augmentations[-1]

dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(load_panoptic_dataset)(
            name="${dataset.train.name}",
            json_file="${dataset.train.json_file}",
            panoptic_root="${dataset.train.panoptic_root}",
            image_root="${dataset.train.image_root}",
            num_classes="${dataset.num_classes}",
            num_things="${dataset.num_things}",
            role="train",
            root="${dataset.root}",
        ),
        mapper=L(PanopticDatasetMapper)(
            is_train=True,
            augmentations=large_scale_jitter_augmentations,
            image_format="RGB",
        ),
        total_batch_size=16,
        num_workers=4,
    ),
    test=L(build_detection_test_loader)(
        dataset=L(load_panoptic_dataset)(
            name="${dataset.test.name}",
            json_file="${dataset.test.json_file}",
            panoptic_root="${dataset.test.panoptic_root}",
            image_root="${dataset.test.image_root}",
            num_classes="${dataset.num_classes}",
            num_things="${dataset.num_things}",
            role="test",
            root="${dataset.root}",
        ),
        mapper=L(PanopticDatasetMapper)(
            is_train=False,
            augmentations=[
                L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333),
            ],
            image_format="RGB",
        ),
        batch_size=1,
        num_workers=4,
    ),
    evaluator=L(panoptic_evaluator)(
        name="${dataset.test.name}",
        json_file="${dataset.test.json_file}",
        panoptic_root="${dataset.test.panoptic_root}",
        image_root="${dataset.test.image_root}",
        instances_json="${dataset.test.instances_json}",
        output_dir="${train.output_dir}/inference",
        num_classes="${dataset.num_classes}",
        num_things="${dataset.num_things}",
        # Of each category of things, those of highest score, for their AP.
        max_dets_per_image=100,
    ),
)
