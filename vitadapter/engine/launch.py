"""Starts the processes of a run, unless torchrun has started them."""

import os
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from detectron2.engine.launch import DEFAULT_TIMEOUT, _find_free_port
from detectron2.utils import comm
from torch import distributed
from torch.distributed import PrefixStore, Store, TCPStore
from torch.distributed.elastic.multiprocessing.errors import record
from torch.multiprocessing import start_processes

from vitadapter.engine.run_checks import setup_errors
from vitadapter.engine.signals import end_by_signals, forward_signals

__all__ = ["Place", "check_alone", "fresh_part", "launch"]

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Variables by which srun, mpirun and hand-made launchers tell a process that it is one of several.
_SIZES = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "WORLD_SIZE")

_POLL_SECONDS = 0.05

Arguments = TypeVar("Arguments")


class Place(NamedTuple):
    """The place of a process in its run; by default, it is the only one."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    url: str = "env://"

    @classmethod
    def from_torchrun(cls, environment: Mapping[str, str]) -> "Place":
        """Reads the variables that torchrun sets.

        Raises:
            ValueError: one of them is missing, or they contradict each other.
        """
        missing = [name for name in _TORCHRUN if not environment.get(name)]
        if missing:
            raise ValueError(
                f"LOCAL_RANK is set, as by torchrun, but not {', '.join(missing)}: start with "
                "torchrun, or unset LOCAL_RANK"
            )
        try:
            rank, size, local_rank, local_size = (int(environment[n]) for n in _TORCHRUN[:4])
            place = cls(rank, size, local_rank, local_size)
        except ValueError:
            place = cls(-1)
        within = 0 <= place.rank < place.world_size
        within &= 0 <= place.local_rank < place.local_world_size
        if not within or place.world_size % place.local_world_size:
            values = ", ".join(f"{name}={environment[name]}" for name in _TORCHRUN[:4])
            raise ValueError(
                "ranks must be numbered from 0 to below their world size, with equally many "
                f"processes on each machine, got {values}"
            )
        return place

    def join(self, device: str) -> None:
        """Connects the processes, through NCCL on GPUs and gloo on CPUs.

        Args:
            device: the device that the run trains on.

        Raises:
            ValueError: there are fewer GPUs than processes, the device is a single GPU, or the
                processes cannot connect.
        """
        if self.world_size == 1:
            return
        on_gpus = torch.device(device).type == "cuda"
        if on_gpus:
            self._choose_gpu(torch.device(device))
        try:
            # The others may never come.
            with end_by_signals():
                distributed.init_process_group(
                    "nccl" if on_gpus else "gloo",
                    **self._meeting_place(os.environ),
                    rank=self.rank,
                    world_size=self.world_size,
                    timeout=DEFAULT_TIMEOUT,
                )
        except RuntimeError as error:
            raise ValueError(
                f"process {self.rank} of {self.world_size} cannot connect to the others at "
                f"{self.url} ({str(error).splitlines()[0]}): set another --dist-url (auto for a "
                "free port of this machine)"
            ) from error
        comm.create_local_process_group(self.local_world_size)
        comm.synchronize()

    def _meeting_place(self, environment: Mapping[str, str]) -> dict[str, Any]:
        """The argument of `init_process_group` that says where the processes meet."""
        if self.url != "env://" or environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return {"init_method": self.url}
        address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=DEFAULT_TIMEOUT)
        return {"store": fresh_part(store, self.rank, self.world_size)}

    def _choose_gpu(self, device: torch.device) -> None:
        found = torch.cuda.device_count()
        if found < self.local_world_size:
            raise ValueError(
                f"{self.local_world_size} processes on this machine need as many GPUs, got "
                f"{found}: start fewer, or set train.device=cpu"
            )
        if device.index is not None:
            raise ValueError(
                f"train.device={device} names one GPU for {self.world_size} processes: set "
                "train.device=cuda"
            )
        torch.cuda.set_device(self.local_rank)


def fresh_part(store: Store, rank: int, world_size: int) -> Store:
    """The part of torchrun's store that belongs to this start of the processes.

    The store outlives restarts, after which processes would find the addresses of those that have
    ended (https://github.com/pytorch/pytorch/issues/135712), and the numbers by which it counts
    restarts differ between machines. So the first process makes up a name, which each of the others
    asks for by one of its own.

    Args:
        store: the same for all processes of all starts.
        rank: of this process.
        world_size: number of processes of this start.
    """
    name = uuid.uuid4().hex
    if rank > 0:
        store.set(f"ask/{rank}", name)
        part = store.get(f"answer/{name}").decode()
        store.set(f"{part}/{rank}", "")
        return PrefixStore(part, store)
    for other in range(1, world_size):
        while not store.check([f"{name}/{other}"]):
            if store.check([f"ask/{other}"]):  # maybe of an earlier start
                store.set(f"answer/{store.get(f'ask/{other}').decode()}", name)
            time.sleep(_POLL_SECONDS)
    return PrefixStore(name, store)


def check_alone(environment: Mapping[str, str] = os.environ, num_machines: int = 1) -> None:
    """Refuses to run as one of several processes that do not know of each other.

    Args:
        environment: environment variables, which launchers set.
        num_machines: number of processes that do know of each other.

    Raises:
        ValueError: the variables name another number of processes; says what to type instead.
    """
    sizes = {name: environment.get(name, "") for name in _SIZES}
    if environment.get("SLURM_PROCID", "0") != "0":  # a batch script without srun has 0
        sizes["SLURM_NTASKS"] = environment.get("SLURM_NTASKS", "several")
    for name, size in sizes.items():
        if size not in ("", "1", str(num_machines)):
            raise ValueError(
                f"{name}={size} says that this is one of {size} processes, which do not know of "
                "each other: all would do the same work and write the same files. Start one "
                "process on each machine. Training takes --num-gpus N (on several machines also "
                "--num-machines M --machine-rank R --dist-url tcp://FIRST_MACHINE:PORT), or\n"
                "  torchrun --nproc_per_node N scripts/lazyconfig_train_net.py --config-file ...\n"
                "(projects/ViTAdapter/slurm/train.sbatch is an example for Slurm). "
                f"If there is only this process, unset {name}"
            )


def _own_place(
    environment: Mapping[str, str], num_gpus: int, num_machines: int, machine_rank: int
) -> Place | None:
    """This process's place, alone or among torchrun's; None if it has to start the processes."""
    if num_gpus < 1 or num_machines < 1 or not 0 <= machine_rank < num_machines:
        raise ValueError(
            "--num-gpus and --num-machines must be positive, and --machine-rank from 0 to below "
            f"--num-machines, got {num_gpus}, {num_machines} and {machine_rank}"
        )
    alone = num_gpus == num_machines == 1
    if not environment.get("LOCAL_RANK"):
        check_alone(environment, num_machines)
        return Place() if alone else None
    if not alone:
        raise ValueError(
            "LOCAL_RANK is set, so that torchrun has started the processes: leave out --num-gpus, "
            "--num-machines and --machine-rank, or start without torchrun"
        )
    return Place.from_torchrun(environment)


def launch(
    main: Callable[[Arguments, Place], None],
    arguments: Arguments,
    *,
    num_gpus: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Runs `main(arguments, place)` in each process of a run, which torchrun may have started.

    Args:
        main: must call `place.join` to connect to the other processes.
        arguments: the first argument of `main`.
        num_gpus: number of processes on this machine.
        num_machines: number of machines.
        machine_rank: number of this machine, counted from 0.
        dist_url: where the processes connect, as in Detectron2; "auto" for a free port of this
            machine.
        environment: environment variables, which torchrun and other launchers set.

    Raises:
        SetupError: options and environment contradict each other, or several processes were
            started that do not know of each other.
    """
    with setup_errors():
        place = _own_place(environment, num_gpus, num_machines, machine_rank)
        if num_machines > 1 and not dist_url.startswith("tcp://"):
            raise ValueError(
                f"several machines need --dist-url tcp://FIRST_MACHINE:PORT, got {dist_url!r}"
            )
    if place is not None:
        # Its summary of a failure has the traceback.
        (record(main) if place.world_size > 1 else main)(arguments, place)
        return
    if dist_url == "auto":
        dist_url = f"tcp://127.0.0.1:{_find_free_port()}"
    options = (main, arguments, num_gpus, num_machines * num_gpus, machine_rank, dist_url)
    with forward_signals():
        start_processes(_run_one, args=options, nprocs=num_gpus)


def _run_one(
    local_rank: int,
    main: Callable[[Arguments, Place], None],
    arguments: Arguments,
    num_gpus: int,
    world_size: int,
    machine_rank: int,
    dist_url: str,
) -> None:
    rank = machine_rank * num_gpus + local_rank
    main(arguments, Place(rank, world_size, local_rank, num_gpus, dist_url))
