"""Cityscapes' 19 classes in crops of 896 pixels, and Mapillary Vistas in the same classes."""

from .sem_seg import dataloader, dataset

dataset.num_classes = 19
dataset.reduce_zero_label = False
dataset.train.name = "cityscapes_19_train"
dataset.test.name = "cityscapes_19_val"
dataset.resize.update(short=1024, long=2048)
dataset.crop.update(size=896, stride=512)

dataset_mapillary = dataset.copy()
dataset_mapillary.train.name = "mapillary_19_trainval"
