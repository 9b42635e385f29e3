"""A loop around a model of two layers, for tests that need no detector; alone or distributed."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.distributed import GradBucket, destroy_process_group, init_process_group
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from vitadapter.engine.failures import tell_of_failures
from vitadapter.engine.train_loop import AccumulatingTrainer

Batch = list[dict[str, object]]

# Of waiting for the other process, which on a busy machine takes long to start.
_TIMEOUT = timedelta(minutes=2)


class SmallModel(nn.Module):
    """Two losses, each a mean over the samples; no batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 2)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        if any(sample.get("diverged") for sample in batch):
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN.")
        factor = max(sample.get("gradient_factor", 1.0) for sample in batch)
        self.seen += len(batch)
        hidden = self.first(torch.stack([s["image"] for s in batch]))
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: gradient * factor)
        out = self.second(hidden.tanh()).float()
        wanted = torch.stack([s["target"] for s in batch])
        error = (out - wanted) ** 2
        return {"loss_cls": error[:, 0].mean(), "loss_box": 3 * error[:, 1].mean()}


def samples(number: int) -> Batch:
    """The same samples whatever their number is: `0.png`, `1.png`, ..."""
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "image": torch.randn(6, generator=generator),
            "target": torch.randn(2, generator=generator),
            "file_name": f"{index}.png",
        }
        for index in range(number)
    ]


def batches(given: Batch, size: int) -> Iterator[Batch]:
    """The samples in batches of this size."""
    for start in range(0, len(given), size):
        yield given[start : start + size]


def run(trainer: AccumulatingTrainer, iterations: int) -> EventStorage:
    """Runs iterations without hooks; returns what they have logged."""
    with EventStorage() as storage:
        for trainer.iter in range(iterations):
            storage.iter = trainer.iter
            trainer.run_step()
    return storage


def error_of(trainer: AccumulatingTrainer) -> str:
    """The message with which the next iteration stops; empty if it does not."""
    try:
        run(trainer, 1)
    except (FloatingPointError, RuntimeError) as error:
        return str(error)
    return ""


def broken_data() -> Iterator[Batch]:
    """A loader that fails at once."""
    raise RuntimeError("a worker has died")
    yield


def distributed(rank: int, folder: Path) -> None:
    """One of two processes: trains on its half of 8 samples, then meets five faults of rank 1.

    The last one ends the process.

    Writes weights, the number of reductions and the messages to `{rank}.json` in the folder.
    """
    init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=_TIMEOUT,
    )
    try:
        report = _train_distributed(rank)
    finally:
        destroy_process_group()
        comm._get_global_gloo_group.cache_clear()
    Path(folder, f"{rank}.json").write_text(json.dumps(report))


def _train_distributed(rank: int) -> dict[str, object]:
    model = DistributedDataParallel(SmallModel())
    reductions = 0

    def count(state: None, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        nonlocal reductions
        reductions += 1
        return allreduce_hook(state, bucket)

    model.register_comm_hook(None, count)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # Rank 0 has the samples 0, 1, 4 and 5.
    mine = [s for i, s in enumerate(samples(8)) if i // 2 % 2 == rank]
    trainer = AccumulatingTrainer(model, batches(mine, 1), optimizer, accumulate_steps=2)
    storage = run(trainer, 2)
    weights = {name: value.tolist() for name, value in model.module.state_dict().items()}
    messages = []
    nan, gradient = {"image": torch.full((6,), float("nan"))}, {"gradient_factor": float("inf")}
    for fault in (nan, gradient, {"diverged": True}):
        spoiled = samples(2)
        if rank == 1:
            spoiled[1].update(fault)
        messages.append(
            error_of(AccumulatingTrainer(model, batches(spoiled, 1), optimizer, accumulate_steps=2))
        )
    after = {name: value.tolist() for name, value in model.module.state_dict().items()}
    loader = broken_data() if rank == 1 else batches(samples(2), 1)
    messages.append(error_of(AccumulatingTrainer(model, loader, optimizer)))
    # Without its target, which the forward pass finds.
    spoiled = samples(1) if rank == 0 else [{**samples(1)[0], "target": torch.zeros(3)}]
    try:
        with tell_of_failures():
            run(AccumulatingTrainer(model, batches(spoiled, 1), optimizer), 1)
    except RuntimeError as error:
        messages.append(str(error))
    return {
        "weights": weights,
        "unchanged": all(after[n] == weights[n] for n in weights if n != "seen"),
        "reductions": reductions,
        "messages": messages,
        "losses": {k: v[0] for k, v in storage.latest().items() if "time" not in k},
    }
