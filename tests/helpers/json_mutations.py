"""Random faults in json: any field absent, null, of another type, out of range or repeated."""

import copy
from collections.abc import Iterator

from hypothesis import strategies as st

_ABSENT = object()
_REPEATED = object()
_VALUES = (
    *(None, True, "", "1", "x", "é", [], {}, [1], [[]], {"a": 1}),
    *(0, 1, -1, 2, 7, 40, 2**31, 2**63, 10**400, 0.5, -3.5, 1e5, 1e9, -1e9, 1e300),
    *(float("nan"), float("inf"), float("-inf")),
    *([[1, 2, 3, 4]], [[1, 1, 1, 1, 1, 1]], [[float("nan")] * 8], [[5, 5, 900, 5, 5, 900]]),
    *([1, 2, 3, float("nan")], ["1", "2", "3", "4"], "../x.png", "/etc/passwd"),
)


def _paths(content: object) -> Iterator[tuple[object, ...]]:
    pairs = ()
    if isinstance(content, dict):
        pairs = content.items()
    elif isinstance(content, list):
        pairs = enumerate(content)
    for key, value in pairs:
        yield (key,)
        yield from ((key, *path) for path in _paths(value))


def _kind(path: tuple[object, ...]) -> tuple[object, ...]:
    return tuple("*" if isinstance(key, int) else key for key in path)


@st.composite
def faulty(draw: st.DrawFn, content: object) -> object:
    """A copy of `content` with one or two faults; each kind of field is as likely."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.sampled_from((1, 1, 1, 2)))):
        paths: dict[object, list[tuple[object, ...]]] = {}
        for path in _paths(content):
            paths.setdefault(_kind(path), []).append(path)
        if not paths:
            return content
        kind = draw(st.sampled_from(sorted(paths, key=repr)))
        *parents, key = draw(st.sampled_from(paths[kind]))
        place = content
        for parent in parents:
            place = place[parent]
        value = draw(st.sampled_from((_ABSENT, _REPEATED, *_VALUES)))
        if value is _ABSENT:
            del place[key]
        elif value is not _REPEATED:
            place[key] = copy.deepcopy(value)
        elif isinstance(place, list):
            place.append(copy.deepcopy(place[key]))
        else:
            place[key] = [place[key], place[key]]
    return content
