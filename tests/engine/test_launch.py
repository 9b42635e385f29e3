"""Which processes make up a run, by options and by the environment."""

import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import distributed
from torch.distributed import distributed_c10d

from vitadapter.engine import launch as launch_module
from vitadapter.engine.launch import Place, check_alone, fresh_part, launch
from vitadapter.engine.run_checks import SetupError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def place_under(environment: dict[str, str], **options: object) -> Place:
    found = []
    launch(lambda _, place: found.append(place), None, environment=environment, **options)
    return found[0]


def test_alone_and_under_torchrun() -> None:
    assert place_under({}) == Place(0, 1, 0, 1)
    assert place_under({"WORLD_SIZE": "1", "RANK": "0", "SLURM_PROCID": "0"}) == Place()
    assert place_under(TORCHRUN) == Place(3, 4, 1, 2, "env://")


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        (TORCHRUN, {"num_gpus": 2}, "torchrun has started the processes: leave out --num-gpus"),
        (TORCHRUN, {"num_machines": 2}, "leave out --num-gpus, --num-machines"),
        (TORCHRUN, {"num_machines": 2, "machine_rank": 1}, "leave out .*--machine-rank"),
        ({"LOCAL_RANK": "0"}, {}, "not RANK, WORLD_SIZE, .*start with torchrun"),
        ({**TORCHRUN, "MASTER_PORT": ""}, {}, "but not MASTER_PORT"),
        ({**TORCHRUN, "RANK": "4"}, {}, "got RANK=4, WORLD_SIZE=4"),
        ({**TORCHRUN, "RANK": "x"}, {}, "got RANK=x"),
        ({**TORCHRUN, "LOCAL_RANK": "2"}, {}, "LOCAL_RANK=2, LOCAL_WORLD_SIZE=2"),
        ({**TORCHRUN, "LOCAL_RANK": "-1"}, {}, "LOCAL_RANK=-1"),
        ({**TORCHRUN, "WORLD_SIZE": "5"}, {}, "equally many processes on each machine"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "0"}, {}, "LOCAL_WORLD_SIZE=0"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, {}, r"WORLD_SIZE=2 .*\s+torchrun --nproc_per_node"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, {}, r"SLURM_STEP_NUM_TASKS=8 .*--num-gpus N"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, {"num_gpus": 8}, "SLURM_STEP_NUM_TASKS=8"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, {}, "SLURM_NTASKS=2"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}, "OMPI_COMM_WORLD_SIZE=2"),
        ({"PMI_SIZE": "2"}, {"num_machines": 3, "dist_url": "tcp://a:1"}, "PMI_SIZE=2"),
        ({}, {"num_gpus": 0}, "must be positive.* got 0, 1 and 0"),
        ({}, {"num_machines": -1}, "must be positive"),
        ({}, {"machine_rank": 1}, "--machine-rank from 0 to below --num-machines, got 1, 1 and 1"),
        ({}, {"num_machines": 2, "dist_url": "auto"}, "--dist-url tcp://.*'auto'"),
    ],
)
def test_contradictions_are_refused(
    environment: dict[str, str], options: dict[str, object], message: str
) -> None:
    with pytest.raises(SetupError, match=f"(?s){message}"):
        place_under(environment, **options)


def test_processes_that_know_of_each_other_are_not_refused(monkeypatch) -> None:
    started = []
    monkeypatch.setattr(
        launch_module, "start_processes", lambda run, args, nprocs: started.append((args, nprocs))
    )
    for environment in (
        {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
        {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "first"},
        # A batch script that starts a process without srun.
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
    ):
        launch(
            print,
            None,
            num_gpus=4,
            num_machines=2,
            machine_rank=1,
            dist_url="tcp://first:1",
            environment=environment,
        )
    check_alone({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"})
    assert started == [((print, None, 4, 8, 1, "tcp://first:1"), 4)] * 3


def test_an_address_that_is_taken(monkeypatch) -> None:
    # PyTorch counts the group that was not made, and would name the next one of this process
    # differently than other processes do.
    monkeypatch.setattr(distributed_c10d._world, "group_count", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match=rf"0 of 2 cannot connect .*{url} .*--dist-url \(auto"):
            Place(0, 2, 0, 2, url).join("cpu")


def test_a_store_that_earlier_processes_have_used() -> None:
    """Each start has a part of its own, even if an earlier one has ended in the middle."""
    store = distributed.HashStore()
    store.set("ask/1", "a process that has ended")
    store.set("ask/2", "another one")
    starts = []
    for size in (3, 2, 3):
        with ThreadPoolExecutor(size) as pool:
            parts = list(pool.map(lambda r, s=size: fresh_part(store, r, s), range(size)))
        for rank, part in enumerate(parts):
            assert not part.check(["rank 0", "rank 1", "rank 2"][rank:])
            part.set(f"rank {rank}", "here")
        assert parts[0].check([f"rank {rank}" for rank in range(size)])
        starts.append(parts)
    assert not starts[1][0].check(["rank 2"])


@pytest.mark.parametrize(
    ("environment", "is_shared"),
    [({}, False), ({"TORCHELASTIC_USE_AGENT_STORE": "False"}, False), ({**TORCHRUN}, True)],
)
def test_only_torchruns_own_store_is_shared(
    environment: dict[str, str], is_shared: bool, monkeypatch
) -> None:
    joined = []
    store = distributed.HashStore()
    for name, value in {"TORCHELASTIC_USE_AGENT_STORE": str(is_shared), **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch_module, "TCPStore", lambda *a, **k: store)
    monkeypatch.setattr(
        launch_module.distributed,
        "init_process_group",
        lambda *a, **options: joined.append(options) or sys.exit(),
    )
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(fresh_part, store, 1, 2) if is_shared else None
        with pytest.raises(SystemExit):
            Place(0, 2, 0, 2).join("cpu")
    assert other is None or other.result() is not None
    assert ("store" in joined[0], joined[0].get("init_method")) == (
        (True, None) if is_shared else (False, "env://")
    )


def test_each_process_needs_a_gpu_of_its_own(monkeypatch) -> None:
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(launch_module.distributed, "init_process_group", lambda *a, **k: sys.exit())
    with pytest.raises(ValueError, match=r"3 processes .*got 2: start fewer"):
        Place(0, 3, 0, 3).join("cuda")
    with pytest.raises(ValueError, match=r"cuda:1 names one GPU for 2 processes: set .*=cuda"):
        Place(0, 2, 0, 2).join("cuda:1")
    with pytest.raises(SystemExit):
        Place(3, 4, 1, 2).join("cuda")
    assert chosen == [1]
