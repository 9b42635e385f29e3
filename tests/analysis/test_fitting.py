"""The search for what fits a GPU, with a model of memory whose answers are known."""

from collections import Counter
from dataclasses import replace

import pytest
from omegaconf import DictConfig

from vitadapter.analysis import MemoryEstimate, Workload, fitting, largest_batch, savings
from vitadapter.commands import estimate_memory as command
from vitadapter.engine.overrides import load_config

GIB = 2**30
MASK_RCNN = "COCO/mask_rcnn_vit_adapter_s_deit_1x"
WORKLOAD = Workload((800, 1280), 16)


@pytest.fixture(autouse=True)
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """1 GiB for the weights and 2 GiB for each image, from the fifth on a little more."""
    batches = []

    def estimate(
        cfg: DictConfig, workload: Workload, *, ranks: int = 1, parallel: str = "ddp"
    ) -> MemoryEstimate:
        batches.append(workload.batch)
        if workload.batch == 1 and cfg.train.ema.enabled:
            raise ValueError("as a batch norm does")
        image = 1 if cfg.train.amp.enabled else 2
        bent = max(workload.batch - 4, 0) * GIB // 4
        fixed = GIB // ranks if parallel == "fsdp2" else GIB
        peak = Counter(parameters=fixed, activations=image * workload.batch * GIB + bent)
        return MemoryEstimate(workload, peak, Counter())

    monkeypatch.setattr(fitting, "estimate_memory", estimate)
    return batches


@pytest.mark.parametrize(
    ("gpu_memory", "fits"), [(3.4, 1), (5.6, 2), (9.9, 3), (10, 4), (24, 9), (80, 32)]
)
def test_the_largest_batch_is_found(gpu_memory: float, fits: int, runs: list[int]) -> None:
    assert largest_batch(load_config(MASK_RCNN), WORKLOAD, gpu_memory) == fits
    assert len(runs) < 10


@pytest.mark.parametrize(("gpu_memory", "fits"), [(9, 3), (24, 9), (80, 32), (240, 96)])
def test_first_images_that_need_less_than_the_optimizer(
    gpu_memory: float, fits: int, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    estimate = fitting.estimate_memory

    def with_optimizer(*args: object, **kwargs: object) -> MemoryEstimate:
        found = estimate(*args, **kwargs)
        optimizer = Counter(optimizer=8 * GIB)
        return replace(found, training=max(found.training, optimizer, key=Counter.total))

    monkeypatch.setattr(fitting, "estimate_memory", with_optimizer)
    assert largest_batch(load_config(MASK_RCNN), WORKLOAD, gpu_memory) == fits
    assert len(runs) < 10


@pytest.mark.parametrize(
    ("size", "most"), [((2**14, 2**14), 1), ((2**14, 2**13), 2), ((800, 1280), 262), ((8, 8), 1024)]
)
def test_the_search_ends(size: tuple[int, int], most: int) -> None:
    assert largest_batch(load_config(MASK_RCNN), Workload(size, 1), 1e6) == most


def test_the_command_says_that_the_search_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "estimate_memory", fitting.estimate_memory)
    command.main([MASK_RCNN, "--size", "800", "1280", "--gpu-memory", "1e6"])
    assert "Largest batch that fits 1e+06 GiB: 262 or more" in capsys.readouterr().out
    command.main([MASK_RCNN, "--size", "800", "1280", "--gpu-memory", "10"])
    assert "Largest batch that fits 10 GiB: 4\n" in capsys.readouterr().out


def test_a_total_batch_that_ranks_do_not_divide() -> None:
    with pytest.raises(SystemExit, match=r"multiple of .* x 3 processes, got 16"):
        command.main([MASK_RCNN, "--ranks", "3"])


def test_a_gpu_that_nothing_fits_is_told_the_smallest_need() -> None:
    with pytest.raises(ValueError, match=r"fits a GPU of 2 GiB.*needs 3\.00 GiB.*of 3\.3 GiB"):
        largest_batch(load_config(MASK_RCNN), WORKLOAD, 2)


def test_a_model_that_one_image_cannot_train() -> None:
    cfg = load_config(MASK_RCNN, ["train.ema.enabled=True"])
    assert largest_batch(cfg, WORKLOAD, 10) == 4
    with pytest.raises(ValueError, match=r"the smallest, 2 x 800 x 1280 pixels, needs 5\.00 GiB"):
        largest_batch(cfg, WORKLOAD, 4)
    changes = [saving.change for saving in savings(cfg, Workload((800, 1280), 2))]
    assert "train.amp.enabled=True train.amp.dtype=bfloat16" in changes
    assert not any("accumulate" in change for change in changes)


@pytest.mark.parametrize("gpu_memory", [0, -24, float("nan"), float("inf")])
def test_a_memory_that_is_none(gpu_memory: float) -> None:
    with pytest.raises(ValueError, match=r"must be positive \(in GiB\), got"):
        largest_batch(load_config(MASK_RCNN), WORKLOAD, gpu_memory)


def test_each_saving_is_named_by_what_to_type() -> None:
    found = savings(load_config(MASK_RCNN), WORKLOAD, ranks=2)
    adapter = "model.backbone.bottom_up"
    checkpointing = f"{adapter}.use_act_checkpoint=True {adapter}.net.use_act_checkpoint=True"
    assert {saving.change: saving.peak / GIB for saving in found} == {
        "train.amp.enabled=True train.amp.dtype=bfloat16": 20,
        checkpointing: 36,
        f"{checkpointing} {adapter}.net.offload_to_cpu=True": 36,
        f"{adapter}.freeze_net=True": 36,
        "train.accumulate_steps=2 (micro-batches of 8)": 18,
        "--parallel fsdp2": 35.5,
    }


def test_cheap_layers_that_run_again_leave_blocks_to_save() -> None:
    adapter = "model.backbone.bottom_up"
    cfg = load_config(MASK_RCNN, [f"{adapter}.net.use_act_checkpoint=layers"])
    changes = [saving.change for saving in savings(cfg, WORKLOAD, ranks=2)]
    assert f"{adapter}.use_act_checkpoint=True {adapter}.net.use_act_checkpoint=True" in changes


def test_what_is_on_already_saves_nothing_more() -> None:
    on = ["train.amp.enabled=True", "model.backbone.bottom_up.freeze_net=True"]
    on += [
        f"model.backbone.bottom_up.{key}=True"
        for key in ("use_act_checkpoint", "net.use_act_checkpoint", "net.offload_to_cpu")
    ]
    assert savings(load_config(MASK_RCNN, on), Workload((800, 1280), 1), parallel="fsdp2") == []
