"""Mean and deviation of RGB pixels (0..255) of pre-trained nets, by timm's names."""

imagenet = dict(pixel_mean=[123.675, 116.28, 103.53], pixel_std=[58.395, 57.12, 57.375])
# Images in [-1, 1]: AugReg, SigLIP.
inception = dict(pixel_mean=[127.5, 127.5, 127.5], pixel_std=[127.5, 127.5, 127.5])
# EVA-02.
clip = dict(pixel_mean=[122.771, 116.746, 104.094], pixel_std=[68.5, 66.632, 70.323])
