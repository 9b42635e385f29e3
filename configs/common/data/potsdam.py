"""ISPRS Potsdam's 6 classes in crops of 512 pixels, eight at a time."""

from .sem_seg import dataloader, dataset

dataset.num_classes = 6
dataset.train.name = "potsdam_6_train"
dataset.test.name = "potsdam_6_val"
dataloader.train.total_batch_size = 8
