"""Vessels of CHASE-DB1 in crops of 128 pixels."""

from .sem_seg import dataloader, dataset

dataset.num_classes = 2
dataset.reduce_zero_label = False
dataset.train.name = "chase_db1_train"
dataset.test.name = "chase_db1_val"
dataset.resize.update(short=960, long=999)
dataset.crop.update(size=128, stride=85)
