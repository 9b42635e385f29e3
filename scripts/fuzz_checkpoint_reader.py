#!/usr/bin/env python
"""Reads randomly damaged and malicious checkpoints: each must load or raise a ValueError.

Small valid files (.pth in the current and the old format, .pkl, .safetensors, .npz) are changed at
random: bytes, numbers, names, instructions of a pickle, headers. Every case is read in a worker
process with limited memory and time. Prints how many cases loaded and how many were refused. If any
case did anything else, prints its seed and exits with 1.
"""

import argparse
import io
import json
import multiprocessing
import pickle
import pickletools
import random
import resource
import struct
import sys
import tempfile
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from vitadapter.checkpoint.reading import read_checkpoint_file, read_state_dict

NUMBERS = (0, 1, -1, 2**15, 2**31 - 1, 2**31, 2**50, 2**62, 2**63 - 1)
NAMES = (
    *("os system", "builtins eval", "numpy ndarray", "numpy dtype", "numpy.core.multiarray scalar"),
    *("numpy.core.multiarray _reconstruct", "numpy.core.numeric _frombuffer"),
    *("argparse Namespace", "pathlib PosixPath"),
    *("collections OrderedDict", "collections Counter", "builtins set", "builtins bytearray"),
    *("_codecs encode", "torch Size", "torch Tensor", "torch device", "torch FloatStorage"),
    *(f"torch._utils _rebuild_{kind}" for kind in ("tensor_v2", "tensor_v3", "parameter")),
    *(f"torch._utils _rebuild_{kind}" for kind in ("sparse_tensor", "qtensor", "nested_tensor")),
    "torch._tensor _rebuild_from_type_v2",
)
OPCODES = b"()]}.0123RQbaesuNt\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94h\x00q\x00K\x05"
BOMBS = (
    b")" + b"\x85" * 100_000,  # a tuple in a tuple in a tuple ...
    b")" + b"q\x00h\x00\x86" * 64,  # each of them twice in the next
    b"}q\x00X\x01\x00\x00\x00ah\x00s",  # a dict in itself
    b"]q\x00h\x00a",
    b"X\x05\x00\x00\x00model}q\x00X\x05\x00\x00\x00modelh\x00ss",
    b"\x8a\xff" + b"\x7f" * 255,
)


def valid_content() -> dict[str, object]:
    """A training state with values of all kinds."""
    weight = torch.arange(24.0).reshape(4, 6)
    weights = OrderedDict(
        a=weight, b=weight.T, c=torch.ones(3).half(), d=torch.nn.Parameter(weight)
    )
    state = {0: {"step": torch.tensor(3.0), "exp_avg": weight}}
    return {
        "model": weights,
        "optimizer": {"state": state, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]},
        "args": argparse.Namespace(lr=0.1, folder=Path("a/b")),
        "best": np.float64(0.5),
        "palette": np.zeros((2, 3), np.uint8),
        "iteration": 7,
    }


def valid_files() -> dict[str, bytes]:
    """Files by suffix."""
    new, old, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(valid_content(), new)
    torch.save(valid_content(), old, _use_new_zipfile_serialization=False)
    arrays = {"a/kernel": np.ones((3, 4), np.float32), "b": np.arange(5)}
    np.savez(archive, **arrays)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {
        ".pth": new.getvalue(),
        ".old.pth": old.getvalue(),
        ".npz": archive.getvalue(),
        ".2.pkl": pickle.dumps({"model": arrays}, 2),
        ".5.pkl": pickle.dumps({"model": arrays}, 5),
        ".safetensors": save(tensors, {"format": "pt"}),
    }


def change_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, doubles or overwrites parts."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(data) + 1)
        length = min(rng.choice((1, 4, 16, 200)), len(data) - at)
        action = rng.randrange(5)
        if action == 0 and length:
            data[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            number = struct.pack("<q", rng.choice(NUMBERS))[: rng.choice((2, 4, 8))]
            data[at : at + len(number)] = number
        elif action == 2:
            del data[at : at + length]
        elif action == 3:
            source = rng.randrange(len(data) + 1)
            data[at:at] = data[source : source + length]
        elif rng.random() < 0.2:
            del data[at:]
    return bytes(data)


def change_pickle(content: bytes, rng: random.Random) -> bytes:
    """Changes whole instructions, but not what follows the pickle."""
    starts = [at for _, _, at in pickletools.genops(content)]
    end = starts[-1] + 1
    parts = [content[a:b] for a, b in zip(starts, [*starts[1:], end], strict=True)]
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(1, len(parts))
        action = rng.randrange(6)
        if action == 0:
            del parts[at]
        elif action == 1:
            parts.insert(at, rng.choice(parts))
        elif action == 2:
            parts.insert(at, bytes([rng.choice(OPCODES)]))
        elif action == 3:
            parts.insert(at, rng.choice(BOMBS))
        else:
            kinds = [
                i for i, part in enumerate(parts) if part[:1] in (b"c" if action == 4 else b"KMJ")
            ]
            if kinds:
                replaced = rng.choice(kinds)
                new = b"c" + rng.choice(NAMES).replace(" ", "\n").encode() + b"\n"
                number = rng.choice(NUMBERS).to_bytes(9, "little", signed=True)
                parts[replaced] = new if action == 4 else b"\x8a\x09" + number
    return b"".join(parts) + content[end:]


def change_old(content: bytes, rng: random.Random) -> bytes:
    """Changes the fourth pickle, which is the content."""
    file = io.BytesIO(content)
    for _ in range(3):
        list(pickletools.genops(file))
    at = file.tell()
    return content[:at] + change_pickle(content[at:], rng)


def change_npy(content: bytes, rng: random.Random) -> bytes:
    """Changes type and shape in the header."""
    types = (b"|O", b"|V8", b">f4", b"<c8", b"|S99", b"<M8[s]", b"(9999999,)<f4")
    header, data = content[10:128], content[128:]
    header = header.replace(b"<f4", rng.choice(types)).replace(b"<i8", rng.choice(types))
    shape = b"(" + str(rng.choice(NUMBERS)).encode() + b", 4" * rng.choice((0, 1, 99)) + b",)"
    header = header.replace(b"(3, 4)", shape).replace(b"(5,)", shape)
    return content[:8] + struct.pack("<H", len(header)) + header + data


def change_archive(content: bytes, rng: random.Random) -> bytes:
    """Writes the archive again with some members changed, doubled, renamed or compressed."""
    out = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", method) as new:
        chosen = rng.choice(old.namelist())
        for name in old.namelist():
            data = old.read(name)
            if name.endswith(".pkl"):
                data = change_pickle(data, rng)
            elif name.endswith(".npy") and rng.random() < 0.5:
                data = change_npy(data, rng)
            elif rng.random() < 0.1:
                data = change_bytes(data, rng)
            is_renamed = name == chosen and rng.random() < 0.2
            # Of a fixed date, so that a case follows from its seed alone.
            info = zipfile.ZipInfo("x" * rng.choice((1, 60_000)) if is_renamed else name)
            new.writestr(info, data, method)
            if name == chosen and rng.random() < 0.1:
                new.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


def change_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Changes shapes, offsets, types and names in the header."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    entry = header[rng.choice(["a/kernel", "b"])]
    action = rng.randrange(5)
    if action == 0:
        entry["shape"] = [rng.choice(NUMBERS)] * rng.choice((1, 2, 1000))
    elif action == 1:
        entry["data_offsets"][rng.randrange(2)] = rng.choice(NUMBERS)
    elif action == 2:
        entry["dtype"] = rng.choice(("F64", "BF16", "F8_E4M3", "F4", "C64", "X", ""))
    elif action == 3:
        header["x" * 1_000_000] = entry
    text = json.dumps(header)
    if action == 4:
        text = text[:-1] + ", " + text[1:]  # every entry twice
    return struct.pack("<Q", len(text)) + text.encode() + content[8 + length :]


CHANGES: dict[str, Sequence[Callable[[bytes, random.Random], bytes]]] = {
    ".pth": (change_bytes, change_archive, change_archive),
    ".old.pth": (change_bytes, change_old, change_old),
    ".npz": (change_bytes, change_archive),
    ".2.pkl": (change_bytes, change_pickle, change_pickle),
    ".5.pkl": (change_bytes, change_pickle, change_pickle),
    ".safetensors": (change_bytes, change_safetensors),
}


def make_case(seed: int, files: dict[str, bytes]) -> tuple[str, bytes]:
    """Suffix and content of a changed file."""
    rng = random.Random(seed)
    suffix = rng.choice(sorted(files))
    return suffix, rng.choice(CHANGES[suffix])(files[suffix], rng)


def read_case(seed: int, files: dict[str, bytes], folder: Path) -> str:
    """The outcome of a case."""
    suffix, content = make_case(seed, files)
    path = folder / f"case{suffix}"
    path.write_bytes(content)
    is_torch = suffix.endswith(".pth")
    readers = [read_state_dict, read_checkpoint_file] if is_torch else [read_state_dict]
    outcome = "loaded"
    for read in readers:
        try:
            for value in read(path).values():
                if isinstance(value, torch.Tensor):
                    value.clone()  # reads every number
        except ValueError:
            outcome = "refused"
        except BaseException as error:  # any other error is what we are looking for
            return f"{type(error).__name__}: {str(error)[:200]}"
    return outcome


def work(connection: Connection, memory: int) -> None:
    """Receives seeds and sends outcomes, until it receives None."""
    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    files = valid_files()
    with tempfile.TemporaryDirectory() as folder:
        while (seed := connection.recv()) is not None:
            connection.send(read_case(seed, files, Path(folder)))


class Worker:
    """A process that reads cases. It is restarted if one ends it or takes too long."""

    def __init__(self, memory: int, seconds: float) -> None:
        self._memory, self._seconds = memory, seconds
        self._start()

    def _start(self) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        # A copy of this process, which has already imported everything.
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=work, args=(theirs, self._memory), daemon=True)
        self._process.start()
        theirs.close()

    def read(self, seed: int) -> str:
        self._connection.send(seed)
        try:
            if self._connection.poll(self._seconds):
                return self._connection.recv()
            outcome = f"more than {self._seconds:g} s"
        except EOFError:
            self._process.join()
            outcome = f"process ended with {self._process.exitcode}"
        self._process.kill()
        self._process.join()
        self._start()
        return outcome

    def stop(self) -> None:
        self._connection.send(None)
        self._process.join()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000, help="number of cases")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first case; each later case adds one"
    )
    parser.add_argument(
        "--memory", type=int, default=1024, help="limit in MiB, in addition to what PyTorch needs"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="time limit per case")
    args = parser.parse_args(arguments)
    worker = Worker(args.memory * 2**20, args.seconds)
    outcomes = {seed: worker.read(seed) for seed in range(args.seed, args.seed + args.cases)}
    worker.stop()
    counts = Counter(outcomes.values())
    loaded, refused = counts.pop("loaded", 0), counts.pop("refused", 0)
    print(f"{args.cases} cases: {loaded} loaded, {refused} refused, {counts.total()} neither")
    for seed, outcome in outcomes.items():
        if outcome in counts:
            print(f"seed {seed}: {outcome}")
    return 1 if counts else 0


if __name__ == "__main__":
    sys.exit(main())
