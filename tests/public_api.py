"""The public API as text: a line for each name, with its signature.

``python tests/public_api.py`` writes ``tests/public_api.txt``; ``test_structure.py`` compares it. Run it, and read the
difference, after an intended change of the API.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path

MODULES = (
    "asyncsync",
    "asyncsync.blocking",
    "asyncsync.cli",
    "asyncsync.config",
    "asyncsync.errors",
    "asyncsync.events",
    "asyncsync.report",
    "asyncsync.status",
    "asyncsync.stores",
    "asyncsync.stores.base",
    "asyncsync.stores.options",
    "asyncsync.stores.wrapped",
    "asyncsync.testing",
    "asyncsync.ui",
)
"""Import paths that stay."""
SNAPSHOT = Path(__file__).with_suffix(".txt")
WIDTH = 100
"""Longer signatures take a line for each parameter."""
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def render() -> str:
    """The whole API; classes that two modules export are described once."""
    described: dict[int, str] = {}
    lines: list[str] = []
    for module in MODULES:
        lines += ["", f"# {module}", *_module(module, described)]
    return "\n".join(lines).lstrip() + "\n"


def _module(name: str, described: dict[int, str]) -> Iterator[str]:
    module = importlib.import_module(name)
    for item in _names(module):
        value, path = getattr(module, item), f"{name}.{item}"
        if inspect.isclass(value) and id(value) in described:
            yield f"{path} = {described[id(value)]}"
        else:
            if inspect.isclass(value):
                described[id(value)] = path
            yield from _value(path, value)


def _names(module: types.ModuleType) -> list[str]:
    """``__all__``, or the public names that the module itself defines."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    return sorted(name for name, value in vars(module).items() if _is_own(module, name, value))


def _is_own(module: types.ModuleType, name: str, value: object) -> bool:
    if name.startswith("_") or inspect.ismodule(value) or isinstance(value, typing.TypeVar):
        return False
    return getattr(value, "__module__", None) == module.__name__ or (name.isupper() and _is_plain(value))


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float | tuple | frozenset)


def _value(path: str, value: object) -> Iterator[str]:
    if inspect.isclass(value):
        yield from _class(path, value)
    elif callable(value):
        yield f"{path}{_signature(value)}"
    else:
        yield f"{path}: {type(value).__name__}"


def _class(path: str, cls: type) -> Iterator[str]:
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object)
    yield f"class {path}({bases})"
    if issubclass(cls, enum.Enum):
        yield from (f"    {member.name} = {member.value!r}" for member in cls)
        return
    is_protocol = getattr(cls, "_is_protocol", False)  # issubclass(cls, Protocol) depends on what was asked before
    if "__init__" in vars(cls) and not is_protocol:
        yield f"    __init__{_signature(cls.__init__)}"
    own = inspect.get_annotations(cls)
    fields = (
        {field.name for field in dataclasses.fields(cls) if field.name in own}
        if dataclasses.is_dataclass(cls)
        else set()
    )
    for name in sorted(fields | {name for name in vars(cls) if not name.startswith("_")}):
        yield f"    {_member(cls, name, name in fields)}"


def _member(cls: type, name: str, is_field: bool) -> str:
    value = inspect.getattr_static(cls, name, None)
    if is_field:
        return f"{name}: {cls.__annotations__[name]}"
    if isinstance(value, property):
        return f"{name}: {inspect.signature(value.fget).return_annotation}"
    if isinstance(value, staticmethod | classmethod):
        return f"{type(value).__name__} {name}{_signature(value.__func__)}"
    if callable(value):
        return f"{'async ' * inspect.iscoroutinefunction(value)}{name}{_signature(value)}"
    return name


def _signature(value: object) -> str:
    try:
        found = inspect.signature(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return "(...)"
    rows = list(_parameters(found))
    result = "" if found.return_annotation is found.empty else f" -> {found.return_annotation}"
    line = f"({', '.join(rows)}){result}"
    if len(line) <= WIDTH:
        return line
    return "\n".join(["(", *(f"        {row}," for row in rows), f"    ){result}"])


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    keywords_only = False
    for item in signature.parameters.values():
        if item.kind is item.KEYWORD_ONLY and not keywords_only:
            keywords_only = True
            yield "*"
        stars = {item.VAR_POSITIONAL: "*", item.VAR_KEYWORD: "**"}.get(item.kind, "")
        keywords_only |= item.kind is item.VAR_POSITIONAL
        kind = "" if item.annotation is item.empty else f": {item.annotation}"
        default = "" if item.default is item.empty else f" = {_default(item.default)}"
        yield f"{stars}{item.name}{kind}{default}"


def _default(value: object) -> str:
    """Settings as a call without arguments: their own fields are listed once, at their class."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if dataclasses.is_dataclass(value):
        return f"{type(value).__name__}(...)"
    return ADDRESS.sub("", repr(value))


if __name__ == "__main__":
    SNAPSHOT.write_text(render(), encoding="utf-8")
