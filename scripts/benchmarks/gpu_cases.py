"""What `scripts/gpu_check.py` measures: the operator, backbones, whole models, a short training."""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from benchmark_backbone import build, build_reference, forward, step
from benchmark_ops import measure
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from benchmarks.attention_peers import load_peers
from benchmarks.deformable_attention import SIZES, OperatorProblem
from benchmarks.interleaved import Turn, copy_bandwidth, interleave
from benchmarks.parallel_training import CASES
from benchmarks.sections import NO_MEMORY, Figures
from vitadapter.analysis.measurement import PRECISIONS, profiled_peak
from vitadapter.analysis.steps import Steps, Workload
from vitadapter.commands.data import sample
from vitadapter.engine.overrides import load_config
from vitadapter.engine.trainer import do_train
from vitadapter.layers.fast import plain_layers
from vitadapter.model_zoo import get_config

__all__ = ["DRY_RUN", "ON_GPU", "Scale", "section_cases"]

Case = Callable[[], Iterator[Figures]]
Calls = dict[tuple[str, str], Callable[[], object]]
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Of a peer. Half types differ less from float32, but for gradients of offsets in half precision
# (fused operators), of which many place taps where two gradients are right.
_LARGEST_DIFFERENCE = 0.05
_MODELS = {
    "Mask R-CNN, ViT-Adapter-S": (
        "Mask R-CNN",
        "COCO/mask_rcnn_vit_adapter_s_deit_1x",
        (800, 1216),
    ),
    "Mask2Former, ViT-Adapter-L": (
        "Mask2Former",
        "ADE20K/mask2former_vit_adapter_l_augreg_640_160k",
        (640, 640),
    ),
}
# Of the models that are cut down; with all proposals, a step takes seconds.
_FEWER = {
    "Mask R-CNN": (
        "model.proposal_generator.post_nms_topk=[64,64]",
        "model.roi_heads.batch_size_per_image=64",
    ),
    "Mask2Former": (),
}
_QUICKSTART = "Digits/mask_rcnn_vit_adapter_t"


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        device: "cuda" or "cpu".
        rounds: turns over which medians are taken.
        image: (height, width) in pixels, of operator and backbones.
        sizes: of the backbones.
        net: settings of their nets, for all of them.
        compiler: what `torch.compile` uses.
        compiled: the precisions in which it compiles.
        tiny: whether whole models are cut down, to images of 64 x 64 pixels.
        iterations: of the training, with so many images in a batch.
        training_batch: images in each of its batches.
        training: overrides of its config.
    """

    device: str
    rounds: int
    image: tuple[int, int]
    sizes: tuple[str, ...]
    net: dict[str, object]
    compiler: str
    compiled: tuple[str, ...]
    tiny: bool
    iterations: int
    training_batch: int
    training: tuple[str, ...]


ON_GPU = Scale(
    device="cuda",
    rounds=20,
    image=(800, 1216),
    sizes=("tiny", "small", "base", "large"),
    net={},
    compiler="inductor",
    compiled=("bfloat16", "float32"),
    tiny=False,
    iterations=60,
    training_batch=4,
    training=(),
)
DRY_RUN = Scale(
    device="cpu",
    rounds=2,
    image=(64, 96),
    sizes=("tiny",),
    net=dict(depth=4, embed_dim=48, window_block_indexes=[0, 2]),
    compiler="eager",
    compiled=("bfloat16",),
    tiny=True,
    iterations=12,
    training_batch=2,
    training=("train.amp.dtype=bfloat16", "lr_multiplier.warmup_iters=2"),
)


def section_cases(section: str, scale: Scale, work: Path) -> dict[str, Case]:
    """The cases of a section by their names, in the order of their importance.

    Args:
        section: "operator", "backbone", "compiled", "detectors" or "training".
        scale: of everything.
        work: folder for data.
    """
    if section == "operator":
        names = product(_DTYPES, ("injector", "extractor"), SIZES)
        cases = {
            f"{use} {size}, {_name(dtype)}": partial(_operator, use, size, dtype, scale)
            for dtype, use, size in names
        }
        return {"peers": partial(_peers, scale), **cases}
    if section in ("backbone", "compiled"):
        run = partial(_backbone, scale=scale, compiled=section == "compiled")
        precisions = scale.compiled if section == "compiled" else reversed(PRECISIONS)
        pairs = product(precisions, scale.sizes)
        return {f"{size}, {precision}": partial(run, size, precision) for precision, size in pairs}
    if section == "detectors":
        return {
            f"{name}, {precision}": partial(_model, *model, precision, scale)
            for precision, (name, model) in product(reversed(PRECISIONS), _MODELS.items())
        }
    return {_QUICKSTART: partial(_training, scale, work)}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _peers(scale: Scale) -> Iterator[Figures]:
    """What there is to compare with: a copy, and no operator that cannot be imported."""
    yield {"copy_gb_per_s": copy_bandwidth(scale.device) / 1e9}
    for name, reason in load_peers(scale.device)[1].items():
        yield {"implementation": name, "left_out": reason}


def _norm_difference(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    pairs = zip(found, exact, strict=True)
    return max(((a.float() - b).norm() / b.norm()).item() for a, b in pairs)


def _operator(use: str, size: str, dtype: torch.dtype, scale: Scale) -> Iterator[Figures]:
    """All operators, of which those that do not give the answer are left out."""
    problem = OperatorProblem(use, size, 1, scale.image, scale.device, dtype)
    exact = problem.in_float32()
    baselines, peers = exact.contenders(), load_peers(scale.device)[0]
    contenders, differences = problem.contenders(), {}
    for name, contender in list(contenders.items()):
        expected = baselines[contender.baseline].answers(exact.grad)
        try:
            differences[name] = _norm_difference(contender.answers(problem.grad), expected)
            if name in peers and not differences[name] <= _LARGEST_DIFFERENCE:
                raise ValueError(f"its answers differ from float32's by {differences[name]:.2g}")
        except Exception as error:  # a foreign operator may fail in any way
            if name not in peers:
                raise
            del contenders[name]
            yield {"implementation": name, "left_out": f"{type(error).__name__}: {error}"}
    for row in measure(problem, contenders, scale.rounds, scale.device, seconds=0):
        difference = differences[str(row["implementation"])]
        yield {**row, "difference": difference if math.isfinite(difference) else "not finite"}


def _peak(call: Callable[[], object], device: str) -> int:
    """By how many bytes the memory grows during a call at most."""
    if torch.device(device).type == "cpu":
        return profiled_peak(call)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() - before


def _milliseconds(turns: Sequence[Turn]) -> float:
    return 1e3 * statistics.median(turn.wall for turn in turns)


def _vitdet(size: str, net: dict[str, object]) -> nn.Module:
    """Detectron2's pyramid over the net of ViTAdapter, with random weights."""
    cfg = get_config("common/models/mask_rcnn_vitdet.py").model.backbone
    cfg.net = get_config("common/models/vit_adapter.py")[f"vit_adapter_{size}"].net
    cfg.net.update(drop_path_rate=0.0, **net)
    return instantiate(cfg)


def _within(
    context: Callable[[], AbstractContextManager[object]], call: Callable[[], object]
) -> None:
    with context():
        call()


def _backbone(size: str, precision: str, scale: Scale, compiled: bool) -> Iterator[Figures]:
    """ViTAdapter beside the reference, and beside ViTDet or what torch.compile makes of it."""
    ours = build(size, **scale.net)
    reference = build_reference(size, **scale.net)
    reference.load_state_dict(ours.state_dict())
    models: dict[str, nn.Module] = {"reference": reference, "ours": ours}
    if compiled:
        torch._dynamo.reset()
        models["ours, compiled"] = torch.compile(ours, backend=scale.compiler)
    else:
        models["ViTDet"] = _vitdet(size, scale.net)
    images = torch.randn(2, 3, *scale.image, device=scale.device)
    calls: Calls = {}
    peaks: dict[str, Figures] = {}
    for name, model in models.items():
        model.to(scale.device).train()
        context = plain_layers if name == "reference" else nullcontext
        own = {
            (name, kind.__name__): partial(
                _within, context, partial(_cast, kind, model, images, precision)
            )
            for kind in (forward, step)
        }
        try:
            peaks[name] = _first_calls(name, own, scale.device)
        except torch.OutOfMemoryError:
            model.zero_grad()
            yield {"implementation": name, "left_out": NO_MEMORY}
            continue
        weights = sum(p.nbytes for p in model.parameters())
        peaks[name] |= {"weights_mb": weights / 1e6}
        calls |= own
    turns = interleave(calls, scale.rounds, scale.device, seconds=0)
    for name, figures in peaks.items():
        kinds = ("forward", "step")
        yield {
            "implementation": name,
            **{f"{kind}_ms": _milliseconds(turns[name, kind]) for kind in kinds},
            **figures,
        }


def _cast(
    kind: Callable[[nn.Module, Tensor], object], model: nn.Module, images: Tensor, precision: str
) -> None:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        kind(model, images)


def _first_calls(name: str, calls: Calls, device: str) -> Figures:
    """The seconds of the first calls, in which torch.compile compiles, and the peaks of others."""
    start = time.perf_counter()
    for call in calls.values():
        call()
    seconds = time.perf_counter() - start
    peaks = {f"{kind}_peak_mb": _peak(call, device) / 1e6 for (_, kind), call in calls.items()}
    return {"first_calls_s": seconds, **peaks}


def _config(kind: str, experiment: str, precision: str, scale: Scale) -> DictConfig:
    """An experiment; the learning rate keeps random weights from leaving the range of numbers."""
    case = CASES[kind]
    backbone = (f"{case.backbone}.{override}" for override in case.backbone_overrides)
    overrides = [*backbone, *case.overrides, *_FEWER[kind]] if scale.tiny else []
    overrides += [*PRECISIONS[precision], "optimizer.lr=1e-8"]
    return load_config(experiment, [f"train.device={scale.device}", *overrides])


def _model(
    kind: str, experiment: str, size: tuple[int, int], precision: str, scale: Scale
) -> Iterator[Figures]:
    """Steps of training with two images, and predictions of one."""
    cfg = _config(kind, experiment, precision, scale)
    workload = Workload((64, 64), 2, 5) if scale.tiny else Workload(size, 2, 20)
    steps = Steps(cfg, workload.images(cfg), device=scale.device)
    calls: Calls = {
        ("model", "training"): steps.run_training,
        ("model", "inference"): partial(steps.run_inference, 1),
    }
    peaks = _first_calls("model", calls, scale.device)
    turns = interleave(calls, scale.rounds, scale.device, seconds=0)
    training = _milliseconds(turns["model", "training"])
    yield {
        "images_per_s": 1e3 * workload.batch / training,
        "training_ms": training,
        "inference_ms": _milliseconds(turns["model", "inference"]),
        "weights_mb": sum(p.nbytes for p in steps.model.parameters()) / 1e6,
        **peaks,
    }


def _training(scale: Scale, work: Path) -> Iterator[Figures]:
    """The quickstart with mixed precision; its loss must stay finite, and fall."""
    data, run = work / "digits", work / "run"
    images = scale.iterations * scale.training_batch
    sample([f"--output={data}", f"--train={images}", "--val=2", "--size=128"])
    own = [
        *(f"train.device={scale.device}", f"train.output_dir={run}", "train.amp.enabled=True"),
        *(f"train.max_iter={scale.iterations}", "train.log_period=1", "~dataloader.evaluator"),
        f"dataloader.train.total_batch_size={scale.training_batch}",
    ]
    for split, folder in (("train", "train"), ("test", "val")):
        own.append(f"dataset.{split}.json_file={data}/annotations/instances_{folder}.json")
        own.append(f"dataset.{split}.image_root={data / folder}")
    start = time.perf_counter()
    do_train(load_config(_QUICKSTART, [*own, *scale.training]))
    seconds = time.perf_counter() - start
    lines = (run / "metrics.json").read_text().splitlines()
    losses = [row["total_loss"] for row in map(json.loads, lines) if "total_loss" in row]
    third = len(losses) // 3
    first, last = (statistics.mean(part) for part in (losses[:third], losses[-third:]))
    if not last < first:  # also if it is NaN
        raise RuntimeError(f"the loss has not fallen: {first:.3g} at first, {last:.3g} at last")
    yield {"seconds": seconds, "first_loss": first, "last_loss": last, "losses": losses}
