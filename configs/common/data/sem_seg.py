"""Any semantic segmentation data set; `dataset.*` is all that one of your own has to override."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader
from detectron2.projects.point_rend import ColorAugSSDTransform

from vitadapter.data.dataset_mapper import build_train_loader
from vitadapter.data.sem_seg import LabelReader, SemSegDatasetMapper, load_sem_seg_dataset
from vitadapter.data.transforms import PadToSize, RandomResize, ResizeToFit, StretchToMultiple
from vitadapter.evaluation.sem_seg import sem_seg_evaluator

from .folder import folder as _folder

dataset = dict(
    **_folder,
    num_classes=150,
    # Text file with one class per line, for folders of your own.
    class_names=None,
    ignore_label=255,
    # Whether label maps hold 0 for no class, and class + 1 elsewhere.
    reduce_zero_label=True,
    train=dict(name="ade20k_150_train", image_root=None, label_root=None),
    test=dict(name="ade20k_150_val", image_root=None, label_root=None),
    # Images are resized to fit these sides; in training, times 0.5 .. 2.
    resize=dict(short=512, long=2048),
    # Crops of training and windows of inference, in pixels.
    crop=dict(size=512, stride=341),
)

_crop = ["${dataset.crop.size}", "${dataset.crop.size}"]
_labels = L(LabelReader)(
    num_classes="${dataset.num_classes}",
    ignore_label="${dataset.ignore_label}",
    reduce_zero_label="${dataset.reduce_zero_label}",
)

dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(load_sem_seg_dataset)(
            name="${dataset.train.name}",
            image_root="${dataset.train.image_root}",
            label_root="${dataset.train.label_root}",
            num_classes="${dataset.num_classes}",
            class_names="${dataset.class_names}",
            ignore_label="${dataset.ignore_label}",
            reduce_zero_label="${dataset.reduce_zero_label}",
            role="train",
            root="${dataset.root}",
        ),
        mapper=L(SemSegDatasetMapper)(
            is_train=True,
            augmentations=[
                L(RandomResize)(
                    short="${dataset.resize.short}",
                    long="${dataset.resize.long}",
                    ratio_range=(0.5, 2.0),
                ),
                L(T.RandomCrop_CategoryAreaConstraint)(
                    crop_type="absolute",
                    crop_size=_crop,
                    single_category_max_area=0.75,
                    ignored_category="${dataset.ignore_label}",
                ),
                L(T.RandomFlip)(horizontal=True),
                L(ColorAugSSDTransform)(img_format="RGB"),
                L(PadToSize)(
                    size=_crop,
                    pixel_value="${model.pixel_mean}",
                    seg_pad_value="${dataset.ignore_label}",
                ),
            ],
            image_format="RGB",
            read_label=_labels,
        ),
        total_batch_size=16,
        aspect_ratio_grouping=False,
        num_workers=4,
    ),
    test=L(build_detection_test_loader)(
        dataset=L(load_sem_seg_dataset)(
            name="${dataset.test.name}",
            image_root="${dataset.test.image_root}",
            label_root="${dataset.test.label_root}",
            num_classes="${dataset.num_classes}",
            class_names="${dataset.class_names}",
            ignore_label="${dataset.ignore_label}",
            reduce_zero_label="${dataset.reduce_zero_label}",
            role="test",
            root="${dataset.root}",
        ),
        mapper=L(SemSegDatasetMapper)(
            is_train=False,
            augmentations=[
                L(ResizeToFit)(short="${dataset.resize.short}", long="${dataset.resize.long}"),
                L(StretchToMultiple)(divisor=32),
            ],
            image_format="RGB",
            read_label=_labels,
        ),
        num_workers=4,
    ),
    evaluator=L(sem_seg_evaluator)(
        name="${dataset.test.name}",
        image_root="${dataset.test.image_root}",
        label_root="${dataset.test.label_root}",
        output_dir="${train.output_dir}/inference",
        num_classes="${dataset.num_classes}",
        class_names="${dataset.class_names}",
        ignore_label="${dataset.ignore_label}",
        reduce_zero_label="${dataset.reduce_zero_label}",
        boundary_iou=False,
    ),
)
