"""Two processes with parts of the weights do what one process does with all of them."""

import json
from pathlib import Path

import pytest
import torch
from coco_samples import make_content, write_coco
from detectron2.config import LazyConfig
from parallel_runs import ITERATIONS, TOTAL_BATCH, advance, process, save, small_run, weights_of
from run_fixtures import TINY_CONFIG
from small_trainer import samples
from torch import nn

from benchmarks.parallel_training import CASES, build_run, largest_difference, train
from vitadapter.checkpoint.reading import read_checkpoint_file, read_state_dict
from vitadapter.engine.checkpoint import AtomicCheckpointer
from vitadapter.engine.launch import launch
from vitadapter.engine.parallel import sharded_groups, whole
from vitadapter.engine.resume import find_and_resume
from vitadapter.engine.settings import PARALLEL
from vitadapter.engine.trainer import do_eval_only


def overrides_of(folder: Path) -> list[str]:
    train_set = write_coco(folder / "train", make_content(images=4))
    test_set = write_coco(folder / "test", make_content(images=3))
    return [
        *(f"dataset.train.json_file={train_set[0]}", f"dataset.train.image_root={train_set[1]}"),
        *(f"dataset.test.json_file={test_set[0]}", f"dataset.test.image_root={test_set[1]}"),
        *(f"train.output_dir={folder / 'run'}", "train.parallel=fsdp2", "train.max_iter=2"),
        *("train.eval_period=1", "train.ema.enabled=True", "train.best_checkpoint.metric=bbox/AP"),
        *("train.checkpointer.period=1", "train.checkpointer.max_to_keep=1"),
        *("train.pictures.period=1", "train.pictures.number=1", "train.writers=[]"),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two processes")


@pytest.fixture(scope="module")
def straight(folder: Path) -> dict[str, torch.Tensor]:
    """What one process has after four iterations, the first two of which are saved."""
    trainer, ema = small_run(samples(8), 2, is_sharded=False)
    plain = AtomicCheckpointer(
        trainer.model, str(folder / "plain"), trainer=trainer, model_ema=ema.module
    )
    advance(trainer, ema, 2)
    save(folder / "plain", plain, trainer)
    advance(trainer, ema, 2)
    return weights_of(trainer, ema)


@pytest.fixture(scope="module")
def results(folder: Path, straight: dict[str, torch.Tensor]) -> dict[str, dict]:
    """What two processes have found."""
    launch(process, (folder, str(TINY_CONFIG), overrides_of(folder)), num_gpus=2, environment={})
    return torch.load(folder / "results.pt", weights_only=False)


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        if not name.endswith("seen"):  # each process counts its own samples
            torch.testing.assert_close(found[name], tensor, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("name", CASES)
def test_losses_weights_and_averages_are_those_of_one_process(name: str, results) -> None:
    case = CASES[name]
    cfg = case.load("ddp", 1, TOTAL_BATCH)
    alone = train(*build_run(cfg, is_double=case.is_double), ITERATIONS)
    losses, weights = largest_difference(results["trained"][name], alone)
    assert len(alone.losses) == ITERATIONS
    assert alone.losses[0] != alone.losses[1]
    assert losses < 1e-6
    assert weights < 1e-4


@pytest.mark.parametrize("parallel", PARALLEL)
def test_compiled_parts_do_the_same(parallel: str, results) -> None:
    alone = train(*build_run(CASES["Mask R-CNN"].load("ddp", 1, TOTAL_BATCH)), ITERATIONS)
    compiled = results["trained"][f"compiled, {parallel}"]
    losses, weights = largest_difference(compiled, alone)
    assert losses < 1e-5
    assert weights < 1e-3


def test_clipping_accumulation_and_averages_keep_their_meaning(results, straight) -> None:
    small = results["small"]
    assert small["part"] == 0.5
    assert_same(small["straight"], straight)
    trainer, ema = small_run(samples(8), 4, is_sharded=False)
    advance(trainer, ema, 2)
    assert_same(small["accumulated"], trainer.model.state_dict())
    assert small["scaled"] > 0


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(results) -> None:
    small = results["small"]
    assert all(torch.equal(small["resumed"][n], t) for n, t in small["straight"].items())


def test_checkpoints_go_from_one_way_to_the_other(folder: Path, results, straight) -> None:
    assert_same(results["small"]["from file"], straight)
    # What two processes have saved is resumed by one.
    trainer, ema = small_run(samples(8)[4:], 2, is_sharded=False)
    checkpointer = AtomicCheckpointer(trainer.model)
    found = find_and_resume(str(folder / "sharded"), checkpointer, trainer, ema)
    assert found is not None
    assert found[1] == 2
    advance(trainer, ema, 2)
    assert_same(weights_of(trainer, ema), straight)


def test_a_sharded_checkpoint_is_read_like_a_file(folder: Path, results) -> None:
    path = folder / "sharded/model_0000001.dcp"
    files = sorted(file.name for file in path.iterdir())
    assert files == [".metadata", "__0_0.distcp", "__1_0.distcp", "state.pth"]
    content = read_checkpoint_file(path)
    assert content["config"] == "some: text"
    assert content["iteration"] == 1
    saved = results["small"]["saved"]
    for name, tensor in read_state_dict(path).items():
        assert torch.equal(tensor, saved[f"model.{name}"])
    for name, tensor in read_state_dict(path, averaged=True).items():
        assert torch.equal(tensor, saved[f"ema.{name}"])


def test_weights_of_a_file_are_divided(folder: Path, results) -> None:
    wanted = read_state_dict(folder / "plain/model_0000001.pth")
    assert_same(results["small"]["started"], wanted)


def test_a_fault_of_one_process_stops_all(results) -> None:
    loss, gradient, weight = results["small"]["faults"]
    assert loss.startswith("the loss became infinite or NaN (loss_")
    assert "images: 1.png" in loss
    assert gradient.startswith("the gradient became infinite or NaN (of ")
    assert "such as first.weight" in gradient
    assert weight == "model.first.weight is infinite or NaN: unused/model.dcp is not written"


def test_processes_that_stop_meet_while_a_checkpoint_is_written(folder: Path, results) -> None:
    assert results["small"]["meets"] is True
    saved = {path.name for path in (folder / "meeting").iterdir()}
    assert saved == {"model_0000000.dcp", "model_0000001.dcp", "last_checkpoint"}


def test_a_whole_run(folder: Path, results) -> None:
    run = folder / "run"
    assert {p.name for p in run.glob("model_*")} == {
        *("model_0000001.dcp", "model_best.dcp", "model_final.dcp")
    }
    assert (run / "last_checkpoint").read_text() == "model_final.dcp"
    assert len(list((run / "predictions").iterdir())) == 2
    assert read_checkpoint_file(run / "model_best.dcp", is_mapped=True)["best"]["completed"] == 1
    # Two processes have evaluated different numbers of images with the averaged weights.
    rows = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    cfg = LazyConfig.apply_overrides(LazyConfig.load(str(TINY_CONFIG)), overrides_of(folder))
    cfg.train.init_checkpoint = str(run / "model_final.dcp")
    cfg.train.output_dir = str(folder / "evaluation")
    assert do_eval_only(cfg)["bbox"]["AP"] == pytest.approx(rows[-1]["bbox/AP"], abs=1e-4)


class _Tied(nn.Module):
    """Two heads of which one shares a weight with the rest of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.backbone.embed = nn.Linear(2, 2)
        self.head, self.tied = nn.Linear(2, 2), nn.Linear(2, 2)
        self.tied.weight = self.backbone.embed.weight
        self.lists = nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])


def test_groups_are_blocks_interactions_and_heads() -> None:
    model = _Tied()
    groups = sharded_groups(model)
    assert groups == [*model.backbone.blocks, model.head, model.lists[0]]
    model = build_run(CASES["Mask R-CNN"].load("ddp", 1))[0]
    names = {module: name for name, module in model.named_modules()}
    found = [names[module] for module in sharded_groups(model)]
    assert {f"backbone.bottom_up.net.blocks.{i}" for i in range(4)} < set(found)
    assert "backbone.bottom_up.interactions.0.injector" in found
    assert "backbone.bottom_up.interactions.3.extra_extractors.1" in found
    assert found[-2:] == ["proposal_generator", "roi_heads"]


def test_alone_nothing_is_divided() -> None:
    cfg = CASES["UPerNet"].load("fsdp2", 1)
    model = build_run(cfg)[0]
    assert not any(hasattr(parameter, "placements") for parameter in model.parameters())
    with whole(model):
        pass
    assert set(PARALLEL) == {"ddp", "fsdp2"}
