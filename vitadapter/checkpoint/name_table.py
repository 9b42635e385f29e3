"""Tables of name prefixes that are read in both directions."""

import re
from collections.abc import Sequence

__all__ = ["NameTable"]

_INDEX = re.compile(r"\{([a-z])(?:\+(\d+))?\}")


class _Pattern:
    """A prefix such as ``"backbone.fpn_lateral{i+2}."``."""

    def __init__(self, text: str) -> None:
        self.text = text
        parts = _INDEX.split(text)  # literal, index, offset, literal, ...
        self._offsets = {
            index: int(offset or 0) for index, offset in zip(parts[1::3], parts[2::3], strict=True)
        }
        groups = [rf"(?P<{index}>\d+)" for index in parts[1::3]]
        literals = [re.escape(literal) for literal in parts[::3]]
        self._regex = re.compile(
            "".join(a + b for a, b in zip(literals, [*groups, ""], strict=True))
        )

    def match(self, name: str) -> tuple[dict[str, int], str] | None:
        """The indices and what follows the prefix; None where it does not begin the name."""
        found = self._regex.match(name)
        if found is None:
            return None
        indices = {index: int(found[index]) - self._offsets[index] for index in self._offsets}
        return None if min(indices.values(), default=0) < 0 else (indices, name[found.end() :])

    def fill(self, indices: dict[str, int]) -> str:
        return _INDEX.sub(lambda m: str(indices[m[1]] + int(m[2] or 0)), self.text)


class NameTable:
    """Renames by prefix; the first row that fits decides.

    Args:
        rows: (official prefix, our prefix). ``{i}`` stands for a number, ``{i+2}`` for the same
            number plus 2: ``("neck.lateral_convs.{i}.conv.", "backbone.fpn_lateral{i+2}.")``.
            Both sides of a row have the same letters. Where one prefix begins another, the longer
            one comes first.
    """

    def __init__(self, rows: Sequence[tuple[str, str]]) -> None:
        self._rows = [(_Pattern(official), _Pattern(ours)) for official, ours in rows]

    def to_ours(self, name: str) -> str | None:
        """Our name for an official one; None where no row fits."""
        for official, ours in self._rows:
            if found := official.match(name):
                return ours.fill(found[0]) + found[1]
        return None

    def to_official(self, name: str) -> str | None:
        """The official name for one of ours; None where no row fits."""
        for official, ours in self._rows:
            if found := ours.match(name):
                return official.fill(found[0]) + found[1]
        return None
