"""Lets one line below `Args` describe several parameters, as in "mean, std: per channel".

Griffe, which reads the docstrings for the documentation site, takes what stands before the colon
for one name. Here each of these names becomes an entry of its own, with its type and default.
"""

from collections.abc import Iterator

from griffe import (
    Class,
    DocstringParameter,
    DocstringSection,
    DocstringSectionParameters,
    Expr,
    Extension,
    Function,
    GriffeLoader,
    Module,
    logger,
)

# "others: see `PlainNet`" stands for those that a class passes on.
OTHERS = "others"


class SharedLines(Extension):
    """Replaces the parameters of all docstrings, and warns of those that do not exist."""

    def on_package(self, *, pkg: Module, loader: GriffeLoader, **_: object) -> None:
        """Called once, when all modules are read."""
        for described in _described(pkg):
            sections = described.docstring.parse(
                "google", warn_unknown_params=False, warn_missing_types=False
            )
            described.docstring.parsed = [_each_alone(each, described) for each in sections]


def _described(parent: Module | Class) -> Iterator[Class | Function]:
    """All classes and functions with a docstring below a module."""
    for member in parent.members.values():
        if member.is_alias:
            continue
        if isinstance(member, Class | Function) and member.docstring is not None:
            yield member
        if isinstance(member, Module | Class):
            yield from _described(member)


def _arguments(described: Class | Function) -> dict[str, tuple[str | Expr | None, object]]:
    """Annotation and default of each argument; those of dataclasses are their attributes."""
    arguments: dict[str, tuple[str | Expr | None, object]] = {}
    if isinstance(described, Class):
        for name, attribute in described.attributes.items():
            arguments[name] = (attribute.annotation, attribute.value)
    for parameter in described.parameters:
        arguments[parameter.name] = (parameter.annotation, parameter.default)
    return arguments


def _each_alone(section: DocstringSection, described: Class | Function) -> DocstringSection:
    if not isinstance(section, DocstringSectionParameters):
        return section
    arguments = _arguments(described)
    entries = []
    for entry in section.value:
        for name in entry.name.split(", "):
            if name not in (OTHERS, *arguments):
                logger.warning(f"{described.path} describes {name!r}, which is no argument")
            annotation, default = arguments.get(name, (None, None))
            value = None if default is None else str(default)
            entries.append(
                DocstringParameter(
                    name, description=entry.description, annotation=annotation, value=value
                )
            )
    return DocstringSectionParameters(entries, section.title)
