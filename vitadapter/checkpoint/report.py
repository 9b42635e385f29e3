"""What became of each entry of a checkpoint and of a model, for people to read."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["LoadReport", "Resized"]

_LINES_PER_GROUP = 6
_NUMBER = re.compile(r"\.\d+\.")


def _pattern(name: str) -> str:
    return _NUMBER.sub(".#.", name)


def _module(name: str) -> str:
    """What a name belongs to: what stands before its first number."""
    return _NUMBER.split(name, maxsplit=1)[0]


def _grouped(names: Mapping[str, str], by_module: bool) -> list[str]:
    """One line for the names that differ in their numbers only, most frequent first."""
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for name, text in names.items():
        key = (_module(name), "") if by_module else (_pattern(name), _pattern(text))
        counts[key] += 1
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    lines = [
        f"{name}{text}" + (f" ({number})" if number > 1 else "")
        for (name, text), number in ordered[:_LINES_PER_GROUP]
    ]
    rest = sum(number for _, number in ordered[_LINES_PER_GROUP:])
    return [*lines, f"and {rest} more"] if rest else lines


@dataclass(frozen=True)
class Resized:
    """How one tensor was brought to the model's shape."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    method: str

    def __str__(self) -> str:
        return f"{self.before} to {self.after}, {self.method}"


@dataclass(frozen=True)
class LoadReport:
    """All names are the model's, but those of ``renamed`` and ``dropped``, which are the file's.

    Attributes:
        source: the file.
        family: what it was recognised as.
        net_share: part of the plain ViT's parameters that was found, in [0, 1]; None without a
            plain ViT in the model.
        loaded: names loaded, resized ones included.
        resized: how, by name.
        renamed: new name by old name.
        dropped: why, by name.
        implied: value by name of what files leave out because it is constant.
        missing: how it is initialised instead, by name.
        wrong_shape: the file's and the model's shape, by name.
        unexpected: names that the model does not have.
    """

    source: str
    family: str
    net_share: float | None
    loaded: tuple[str, ...] = ()
    resized: Mapping[str, Resized] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    implied: Mapping[str, float] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    wrong_shape: Mapping[str, str] = field(default_factory=dict)
    unexpected: tuple[str, ...] = ()

    def _sections(self) -> Iterable[tuple[str, Mapping[str, str]]]:
        yield "resized", {name: f": {how}" for name, how in self.resized.items()}
        yield "renamed", {old: f" -> {new}" for old, new in self.renamed.items()}
        yield "dropped", {name: f": {why}" for name, why in self.dropped.items()}
        yield "constant", {name: f" = {value:g}" for name, value in self.implied.items()}
        yield "missing", {name: f": {how}" for name, how in self.missing.items()}
        yield "wrong shape", {name: f": {shapes}" for name, shapes in self.wrong_shape.items()}
        yield "unexpected", dict.fromkeys(self.unexpected, "")

    def _title(self) -> str:
        share = "" if self.net_share is None else f", {self.net_share:.1%} of the net's parameters"
        return f"{self.source} ({self.family}): {len(self.loaded)} tensors loaded{share}"

    def summary(self) -> str:
        """A few lines: counts, and names that differ in numbers only as one."""
        lines = [self._title()]
        for title, names in self._sections():
            if names:
                lines.append(f"  {title}: {len(names)}")
                lines += [f"    {line}" for line in _grouped(names, title == "missing")]
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Writes every name to a text file."""
        lines = [self._title(), f"loaded: {len(self.loaded)}", *self.loaded]
        for title, names in self._sections():
            lines += ["", f"{title}: {len(names)}"]
            lines += [f"{name}{text}" for name, text in names.items()]
        path.write_text("\n".join(lines) + "\n")
