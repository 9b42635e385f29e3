"""COCO-Stuff's 171 classes: 164k images, or `dataset_10k` in place of `dataset`."""

from .sem_seg import dataloader, dataset

dataset.num_classes = 171
dataset.reduce_zero_label = False
dataset.train.name = "coco_stuff_164k_train"
dataset.test.name = "coco_stuff_164k_val"

dataset_10k = dataset.copy()
dataset_10k.reduce_zero_label = True
dataset_10k.train.name = "coco_stuff_10k_train"
dataset_10k.test.name = "coco_stuff_10k_test"
