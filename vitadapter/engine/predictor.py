"""Predictions for single images, for any LazyConfig with a model and a test mapper."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vitadapter.data.coco import coco_metadata
from vitadapter.data.dataset_source import Segment
from vitadapter.data.panoptic import panoptic_metadata
from vitadapter.data.sem_seg import sem_seg_metadata
from vitadapter.data.transforms import augment
from vitadapter.engine.building import build
from vitadapter.engine.channels import apply_channels
from vitadapter.engine.checkpoint import AtomicCheckpointer, load_init_checkpoint
from vitadapter.engine.checkpoint_config import carried_classes, read_config
from vitadapter.engine.inference import apply_tiles, apply_tta, build_inference, set_tiles
from vitadapter.engine.run_checks import check_device
from vitadapter.engine.settings import ImageFormat, check_value, fill_defaults
from vitadapter.modeling.image_record import ImageRecord
from vitadapter.modeling.inference import Tiles

__all__ = ["LazyPredictor", "Prediction", "check_image", "class_metadata"]


class Prediction(TypedDict, total=False):
    """What the model finds in an image, in its pixels; a model has some of these."""

    instances: Instances
    """If images are cut into tiles, `pred_masks` are `vitadapter.encoded_masks.EncodedMasks`."""
    sem_seg: Tensor
    """(K, H, W), a map of scores for each class."""
    label_map: Tensor
    """(H, W), the class of each pixel, in place of `sem_seg` if images are cut into tiles."""
    panoptic_seg: tuple[Tensor, list[Segment]]
    """(H, W), a map of the numbers of segments, and their descriptions."""


def check_image(image: object, array_format: str | int = "BGR") -> None:
    """Refuses what a predictor does not take as an image.

    Args:
        image: ought to be a (H, W, 3) uint8 array in BGR order, or (H, W, C) of any numbers.
        array_format: "BGR", or the number C of channels.

    Raises:
        ValueError: it is something else.
    """
    if image is None:
        raise ValueError("image is None, which is what cv2.imread returns for an unreadable file")
    is_colours = isinstance(array_format, str)
    rule = f"image must be a (H, W, {array_format}) array of numbers"
    if is_colours:
        rule = "image must be a (H, W, 3) uint8 array in BGR order"
    channels = 3 if is_colours else array_format
    if not isinstance(image, np.ndarray):
        raise ValueError(f"{rule}, got {type(image).__name__}")
    is_number = image.dtype == np.uint8 if is_colours else image.dtype.kind in "uif"
    if image.ndim != 3 or image.shape[2] != channels or not is_number or image.size == 0:
        raise ValueError(f"{rule}, got {image.shape} {image.dtype}")


class LazyPredictor:
    """Runs a trained config on images, like Detectron2's `DefaultPredictor` for yacs configs.

    Example::

        cfg = LazyConfig.load("projects/ViTAdapter/configs/COCO/....py")
        predictor = LazyPredictor(cfg, "output/model_final.pth")
        instances = predictor(read_image("image.jpg", "BGR"))["instances"]

    A checkpoint of a run suffices: `LazyPredictor("output/model_final.pth")`.

    Args:
        cfg: the whole config. The model, `train`, the test mapper's augmentations and image
            format, and the class names of the test data set are used; the images need not
            exist. Missing settings are filled in. Or a checkpoint that carries its config: see
            `read_config`.
        weights: checkpoint file or URL; None for `train.init_checkpoint` or the checkpoint that
            stands in place of a config, "" for random weights (to measure time and memory).
        device: None for `train.device`.
        complete: whether the weights must be those of the whole model. If not, they may be what a
            training starts from, such as those of the net alone.
        tiles: how large images are cut, such as `Tiles(size=800)`; None for
            `train.inference.tiles`, by which they usually are not. See `Prediction` for what
            differs.

    Attributes:
        model: in evaluation mode.
        inference: the model as `train.inference` runs it.
        image_format: "RGB" or "BGR", the channel order that the model wants, or the number of
            channels that it takes as they are.
        array_format: what is given to it, for `read_image`: "BGR", or the number of channels.
        augmentations: how images are resized for it; none if they are cut into tiles.
        metadata: what the weights carry of their classes, or else of the test data set, with
            `thing_classes` or, for a semantic or panoptic segmenter, `stuff_classes` if they are
            known.

    Raises:
        TypeError: `cfg` is neither a config nor the name of a file.
        ValueError: there are no weights, or they are incomplete or those of another model; the
            checkpoint carries no config; the device does not exist; or the image format is
            neither RGB nor BGR.
    """

    def __init__(
        self,
        cfg: DictConfig | str | Path,
        weights: str | None = None,
        device: str | None = None,
        *,
        complete: bool = True,
        tiles: Tiles | None = None,
    ) -> None:
        if isinstance(cfg, str | Path):
            cfg = read_config(cfg)
        elif not isinstance(cfg, DictConfig):
            raise TypeError(f"cfg must be a config or a checkpoint, got {type(cfg).__name__}")
        fill_defaults(cfg)
        if weights is None:
            weights = cfg.train.init_checkpoint
            if not weights:
                raise ValueError(
                    "there are no weights to predict with: give them, or set "
                    "train.init_checkpoint=... (weights='' predicts with random ones)"
                )
        device = device or cfg.train.device
        check_device(device)
        if tiles is not None:
            set_tiles(cfg, tiles)
        apply_channels(cfg)
        apply_tta(cfg)
        apply_tiles(cfg)
        mapper = cfg.dataloader.test.mapper
        check_value("dataloader.test.mapper.image_format", ImageFormat, mapper.image_format)
        self.image_format = mapper.image_format
        is_colours = isinstance(self.image_format, str)
        self.array_format: str | int = "BGR" if is_colours else self.image_format
        self.augmentations = T.AugmentationList(
            build(mapper.augmentations, "dataloader.test.mapper.augmentations")
        )
        self.model = build(cfg.model, "model").to(device).eval()
        load_init_checkpoint(
            AtomicCheckpointer(self.model),
            weights,
            complete=complete,
            allow_partial=not complete and cfg.train.init_allow_partial,
            averaged=cfg.train.ema.enabled,
        )
        self.inference = build_inference(cfg, self.model)
        self.metadata = class_metadata(cfg, weights)

    def __call__(self, image: np.ndarray) -> Prediction:
        """
        Args:
            image: `(H, W, 3)` uint8 in BGR order, as
                `vitadapter.data.image_files.read_image` returns it. (So does `cv2.imread`,
                which however reads images of more than 8 bits differently from training.)
                If the model takes other channels: `(H, W, C)`, of any numbers.

        Returns:
            The model's output for this image.

        Raises:
            ValueError: `image` is not such an array.
        """
        return self.predict([image])[0]

    @torch.no_grad()
    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Predicts several images; those of the same padded size form a batch.

        Args:
            images: each as in `__call__`.

        Returns:
            One output per image.

        Raises:
            ValueError: one of the images is not such an array.
        """
        for image in images:
            check_image(image, self.array_format)
        return self.inference([self.preprocess(image) for image in images])

    def preprocess(self, image: np.ndarray) -> ImageRecord:
        """The input of the model for an image as in `__call__`, augmented as for testing."""
        height, width = image.shape[:2]
        if self.image_format == "RGB":
            image = image[:, :, ::-1]
        elif isinstance(self.image_format, int) and image.dtype != np.uint8:
            image = image.astype(np.float32)
        pixels = augment(self.augmentations, np.ascontiguousarray(image)).image
        return {"image": pixels, "height": height, "width": width}


def class_metadata(cfg: DictConfig, weights: str = "") -> Metadata:
    """What is known of the classes of weights: what they carry, or else the config's test data set.

    Args:
        cfg: the whole config.
        weights: as of `load_init_checkpoint`; "" for those of the test data set.
    """
    carried = carried_classes(weights)
    if carried is not None:
        return carried
    test = OmegaConf.select(cfg, "dataset.test")
    if test is None:
        return Metadata()
    if "label_root" in test:
        dataset = cfg.dataset
        return sem_seg_metadata(test.name, dataset.get("class_names"), dataset.num_classes)
    if "panoptic_root" in test:
        return panoptic_metadata(test.name, test.get("json_file"), cfg.dataset.num_things)
    return coco_metadata(test.name, test.get("json_file"), test.get("image_root"))
