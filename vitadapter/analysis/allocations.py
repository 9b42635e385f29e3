"""Counts the memory of the tensors that are alive, real or fake, while operators run."""

import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["HOST", "AllocationTracker"]

HOST = "on the host"  # kind of what a GPU would not have to hold


class AllocationTracker(TorchDispatchMode):
    """While active, knows the bytes of all storages that operators have made and nobody has freed.

    What a kernel allocates and frees inside of itself is not seen.

    Attributes:
        kind: what new storages are counted as.
        live: bytes that are alive now, by kind.
        peak: what `live` was when its sum was largest since `reset_peak`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.kind = "other"
        self._storages: dict[int, tuple[weakref.ref[object], str, int]] = {}
        self._total = self._highest = 0

    def label(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Says of what kind the storages of tensors are, which may have been made before."""
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            if key not in self._storages:
                self._add(tensor, kind)
                continue
            alive, before, size = self._storages[key]
            self._count(before, -size)
            self._storages[key] = alive, kind, size
            self._count(kind, size)

    def reset_peak(self) -> None:
        """Forgets the peak so far."""
        self._highest = 0
        self._count(self.kind, 0)

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (
                tensor.untyped_storage()._cdata not in self._storages
            ):
                self._add(tensor, self.kind)
        return out

    def _add(self, tensor: Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()

        def free(_: object) -> None:
            _, kind, size = self._storages.pop(key)
            self._count(kind, -size)

        self._storages[key] = weakref.ref(storage, free), kind, size
        self._count(kind, size)

    def _count(self, kind: str, size: int) -> None:
        self.live[kind] += size
        self._total += size if kind != HOST else 0
        if self._total > self._highest:
            self._highest = self._total
            self.peak = +self.live
