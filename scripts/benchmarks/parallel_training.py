"""Trains the same model on the same images with any number of processes, to compare the results.

Each micro-batch is one image, and each process accumulates as many of them as it takes for the same
total batch. So losses that are normalised within a process are normalised alike, and random numbers
are drawn by the image. Batch norms are frozen, since they would see other batches.

Results can only agree to rounding where a rounding error stays small. So no proposal is suppressed
and all are trained with, points are not chosen by their logits, and Adam's epsilon is large enough
not to blow up gradients that are zero but for rounding (of a bias before a group norm, or of keys).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from vitadapter.analysis import Workload
from vitadapter.analysis.measurement import profiled_peak
from vitadapter.checkpoint.sharded import local_part, named_tensors
from vitadapter.engine.building import build
from vitadapter.engine.ema import WeightEMA
from vitadapter.engine.overrides import load_config
from vitadapter.engine.settings import check_settings
from vitadapter.engine.train_loop import AccumulatingTrainer
from vitadapter.engine.trainer import build_ema, build_trainer, checkpointer_class
from vitadapter.modeling.image_record import ImageRecord
from vitadapter.solver import ClippedAdamW

__all__ = [
    "CASES",
    "Case",
    "Costs",
    "Result",
    "build_run",
    "largest_difference",
    "measure",
    "train",
]

TOTAL_BATCH = 4
_SMALLEST = 0.01
_SIZE = (64, 64)

_TINY = ("net.embed_dim=32", "net.depth=4", "net.num_heads=2", "deform_num_heads=4")
_PLAIN = ("norm=FrozenBN", "drop_path_rate=0.0", "net.drop_path_rate=0.0")


@dataclass(frozen=True)
class Case:
    """An experiment that is cut down.

    Attributes:
        config: its name.
        backbone: the key of the adapter.
        backbone_overrides: of the keys below that.
        overrides: of other keys.
        max_norm: of the gradient; None for no clipping.
        is_double: whether it computes in float64.
    """

    config: str
    backbone: str
    backbone_overrides: tuple[str, ...]
    overrides: tuple[str, ...]
    max_norm: float | None = None
    is_double: bool = False

    def load(self, parallel: str, processes: int, total_batch: int = TOTAL_BATCH) -> DictConfig:
        """The whole config, for so many processes."""
        adapter = [f"{self.backbone}.{override}" for override in self.backbone_overrides]
        training = [
            *("train.device=cpu", "train.amp.enabled=False", "train.ema.enabled=True"),
            "+optimizer.eps=1e-4",
            *(f"train.parallel={parallel}", f"train.accumulate_steps={total_batch // processes}"),
        ]
        cfg = load_config(self.config, [*adapter, *self.overrides, *training])
        if self.max_norm is not None:
            cfg.optimizer._target_ = ClippedAdamW
            cfg.optimizer.max_norm = self.max_norm
        check_settings(cfg)
        return cfg


CASES = {
    "Mask R-CNN": Case(
        "COCO/mask_rcnn_vit_adapter_t_deit_1x",
        "model.backbone.bottom_up",
        (*_TINY, *_PLAIN, "net.window_block_indexes=[0,2]", "net.use_act_checkpoint=True"),
        (
            *("model.backbone.out_channels=32", "model.proposal_generator.head.in_channels=32"),
            "model.roi_heads.box_head.input_shape.channels=32",
            *("model.roi_heads.box_head.fc_dims=[32]", "model.roi_heads.batch_size_per_image=4096"),
            *("model.roi_heads.positive_fraction=1.0", "model.proposal_generator.nms_thresh=1.0"),
            "model.proposal_generator.pre_nms_topk=[4096,4096]",
            "model.proposal_generator.post_nms_topk=[4096,4096]",
            "model.proposal_generator.batch_size_per_image=4096",
            "model.proposal_generator.positive_fraction=1.0",
            "model.roi_heads.box_predictor.input_shape.channels=32",
            "model.roi_heads.mask_head.input_shape.channels=32",
            "model.roi_heads.mask_head.conv_dims=[32]",
        ),
    ),
    "UPerNet": Case(
        "ADE20K/upernet_vit_adapter_t_deit_160k",
        "model.backbone",
        (*_TINY, *_PLAIN),
        (
            *("model.sem_seg_head.head.channels=32", "model.sem_seg_head.head.norm=FrozenBN"),
            *(
                "model.sem_seg_head.head.dropout=0.0",
                "model.sem_seg_head.auxiliary_head.dropout=0.0",
            ),
            "model.sem_seg_head.auxiliary_head.channels=32",
        ),
        max_norm=0.5,
    ),
    "Mask2Former": Case(
        "ADE20K/mask2former_vit_adapter_s_dinov2_finetune",
        "model.backbone",
        (*_TINY, *_PLAIN),
        (
            *(f"model.sem_seg_head.pixel_decoder.{size}=32" for size in ("embed_dim", "ffn_dim")),
            "model.sem_seg_head.pixel_decoder.num_layers=1",
            "model.sem_seg_head.pixel_decoder.num_heads=4",
            *(
                "model.sem_seg_head.predictor.num_layers=2",
                "model.sem_seg_head.predictor.ffn_dim=32",
            ),
            *(
                "model.sem_seg_head.predictor.num_queries=8",
                "model.criterion.matcher.num_points=64",
            ),
            "model.criterion.importance_sample_ratio=0.0",
        ),
        # Its attention leaves out where a mask is below a half, which a rounding error can change.
        is_double=True,
    ),
}
"""By the name of the model; between them, they checkpoint activations, clip gradients, and have
learning rates by layer."""


@dataclass(frozen=True)
class Result:
    """What training has led to.

    Attributes:
        losses: the total loss of each iteration.
        weights: the whole weights in the end, and the averaged ones, by name.
    """

    losses: list[float]
    weights: dict[str, Tensor]


def _micro_batches(images: list[ImageRecord], processes: int) -> Iterator[list[ImageRecord]]:
    iteration = 0
    while True:
        for number in range(comm.get_rank(), len(images), processes):
            yield [{**images[number], "draw": 1000 * iteration + number}]
        iteration += 1


def _seed(module: nn.Module, inputs: tuple[list[ImageRecord]]) -> None:
    torch.manual_seed(int(str(inputs[0][0]["draw"])))


def build_run(
    cfg: DictConfig, *, is_double: bool = False
) -> tuple[nn.Module, AccumulatingTrainer, WeightEMA]:
    """Builds a model, what trains it, and its average, in each process of the job."""
    processes = comm.get_world_size()
    images = Workload(_SIZE, processes * cfg.train.accumulate_steps, objects=5).images(cfg)
    torch.manual_seed(comm.get_rank())  # the weights of the first process count
    model = build(cfg.model, "model")
    if is_double:
        model.double()
    ema = build_ema(cfg, model)
    assert ema is not None
    trainer = build_trainer(cfg, model, _micro_batches(images, processes))
    ema.reset(model)
    model.register_forward_pre_hook(_seed)
    return model, trainer, ema


def train(
    model: nn.Module, trainer: AccumulatingTrainer, ema: WeightEMA, iterations: int
) -> Result:
    """Trains in each process of the job; only the first process knows the losses."""
    losses = []
    for iteration in range(iterations):
        with EventStorage(iteration) as storage:
            trainer.run_step()
            losses += [storage.latest()["total_loss"][0]] if comm.is_main_process() else []
        ema.update(model, iteration)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = {
        f"{kind}.{name}": tensor.clone()
        for kind, module in (("model", model), ("average", ema.module))
        for name, tensor in get_model_state_dict(module, options=options).items()
    }
    return Result(losses, weights)


def largest_difference(result: Result, other: Result) -> tuple[float, float]:
    """Of the losses, relative; and of the weights, relative to the largest of each tensor, or 0.01
    if that is larger: some are zero at first, and stay so but for rounding."""
    pairs = zip(result.losses, other.losses, strict=True)
    of_losses = max(abs(first - second) / abs(second) for first, second in pairs)
    assert result.weights.keys() == other.weights.keys()
    of_weights = 0.0
    for name, tensor in result.weights.items():
        wanted = other.weights[name].double()
        largest = max(wanted.abs().max().item(), _SMALLEST)
        of_weights = max(of_weights, (tensor.double() - wanted).abs().max().item() / largest)
    return of_losses, of_weights


@dataclass(frozen=True)
class Costs:
    """What training costs a process.

    Attributes:
        peak: of the memory of its tensors in bytes.
        stalled: seconds for which a save keeps training waiting.
        saved: seconds after which the checkpoint is on the disk.
    """

    peak: int
    stalled: float
    saved: float


def _kept(model: nn.Module, trainer: AccumulatingTrainer, ema: WeightEMA) -> int:
    """Bytes of what a process keeps between two iterations, gradients included."""
    states = {"optimizer": trainer.optimizer.state_dict(), "gradients": {}}
    for name, parameter in model.named_parameters():
        states["gradients"][name] = parameter.grad
    modules = [tensor for m in (model, ema.module) for tensor in (*m.parameters(), *m.buffers())]
    tensors = [*modules, *(tensor for _, tensor in named_tensors(states))]
    return sum(local_part(tensor).nbytes for tensor in tensors)


def measure(cfg: DictConfig, folder: Path) -> Costs:
    """Measures a process of the job, in its second iteration.

    Args:
        cfg: the whole config.
        folder: where a checkpoint is written.
    """
    model, trainer, ema = build_run(cfg)
    train(model, trainer, ema, 1)  # the optimizer's state comes with the first iteration
    kept = _kept(model, trainer, ema)
    with EventStorage(0):
        peak = kept + profiled_peak(trainer.run_step)
    kind = checkpointer_class(cfg)
    checkpointer = kind(trainer.model, str(folder), trainer=trainer, model_ema=ema.module)
    trainer.iter = 0
    comm.synchronize()
    start = time.perf_counter()
    checkpointer.save("model", iteration=0)
    stalled = time.perf_counter() - start
    checkpointer.wait()
    return Costs(peak, stalled, time.perf_counter() - start)
