"""Pascal Context's 59 classes in crops of 480 pixels."""

from .sem_seg import dataloader, dataset

dataset.num_classes = 59
dataset.train.name = "pascal_context_59_train"
dataset.test.name = "pascal_context_59_val"
dataset.resize.update(short=520, long=520)
dataset.crop.update(size=480, stride=320)
# In training the longer side has 520 pixels, in the test the shorter.
dataloader.test.mapper.augmentations[0].long = 4096
