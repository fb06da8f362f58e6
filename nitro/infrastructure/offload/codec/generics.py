"""Parametrised classes, such as `Box[int]`: written as origin and arguments, made again from loaded classes.

    reference = name | [head, [argument, …]]      name = "module:qualname" | a name of `SPECIAL`

Pydantic's classes and typing's are the only ones whose `[]` is used: no code of the class that a message names runs.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import reduce
from operator import or_
from types import FunctionType, GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Generic, Literal, NewType, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel
from typing_extensions import TypeAliasType

from nitro.errors import PayloadUnreadable
from nitro.infrastructure.offload.codec.names import Refused, find_named, name_of
from nitro.infrastructure.offload.codec.scalars import Json

NAMED = (type, TypeVar, NewType, TypeAliasType)
SPECIAL: dict[str, Any] = {"Any": Any, "None": None, "NoneType": NoneType, "...": ..., "object": object}
TYPING = {
    name: getattr(typing, name)
    for name in (
        *("List", "Dict", "Set", "FrozenSet", "Tuple", "Type", "Deque", "DefaultDict", "OrderedDict", "Counter"),
        *("Collection", "Container", "Iterable", "Iterator", "Sequence", "MutableSequence"),
        *("Mapping", "MutableMapping", "AbstractSet", "MutableSet"),
    )
}
"""Aliases of the typing module, which are not equal to what they stand for."""
HOOKS = ("__get_pydantic_core_schema__", "__get_validators__")
PLAIN = (str, int, bool, NoneType)
CONSTRAINTS = "annotated_types"


def is_parametrised(cls: type) -> bool:
    """Whether pydantic made it from a generic model."""
    return parts_of(cls)[0] is not None


def parts_of(cls: object) -> tuple[Any, tuple[Any, ...]]:
    """Origin and arguments of a parametrised class or alias; no origin if it is none."""
    made = vars(cls).get("__pydantic_generic_metadata__") if isinstance(cls, type) else None
    if made is not None:
        return made["origin"], made["args"]
    return (None, ()) if isinstance(cls, type) else (get_origin(cls), get_args(cls))


def written(part: Any) -> Json:
    """The reference to a class, an alias or an argument.

    Raises:
        Refused: a worker could not make it again.
    """
    special = next((name for name, value in SPECIAL.items() if value is part), None)
    if special is not None:
        return special
    origin, args = parts_of(part)
    if origin is None:
        return _name(part)
    if origin is Literal:
        return ["Literal", [_literal(value) for value in args]]
    if origin is Annotated:
        return ["Annotated", [written(args[0]), *map(_constraint, args[1:])]]
    return [_head(part, origin), [written(argument) for argument in args]]


def rebuilt(reference: Json) -> Any:
    """The class, alias or argument that a reference means.

    Raises:
        PayloadUnreadable: something in it is in no loaded module, or may not stand there.
    """
    if type(reference) is str:
        return SPECIAL[reference] if reference in SPECIAL else _found(reference)
    head, parts = reference
    if type(parts) is not list or not parts:
        raise PayloadUnreadable("the payload has a parametrised class without arguments")
    if head in MAKERS:
        return MAKERS[head](parts)
    arguments = tuple(map(rebuilt, parts))
    return TYPING[head][arguments] if head in TYPING else _subscripted(_found(head), arguments)


def _head(part: Any, origin: Any) -> str:
    if origin is Union or origin is UnionType:
        return "|" if isinstance(part, UnionType) else "Union"
    name: str = getattr(part, "__name__", "")
    if not isinstance(part, type | GenericAlias) and part.__module__ == "typing" and name in TYPING:
        return name
    return _name(origin)


def _name(part: Any) -> str:
    name = name_of(part) if isinstance(part, NAMED) else None
    if name is None:
        raise Refused(type(part), f"{part!r} has no name in a module")
    return name


def _literal(value: Any) -> Json:
    if isinstance(value, Enum):
        return [_name(type(value)), value.name]
    return _plain(value)


def _plain(value: Any) -> Json:
    if type(value) not in PLAIN:
        raise Refused(type(value), f"{value!r} cannot stand in the name of a class")
    return value


def _constraint(value: Any) -> Json:
    """One of `annotated_types`, such as `Gt(0)`, or plain."""
    if type(value).__module__ != CONSTRAINTS or not is_dataclass(value):
        return _plain(value)
    return [_name(type(value)), {field.name: _plain(getattr(value, field.name)) for field in fields(value)}]


def _found(name: str) -> Any:
    found = find_named(name)
    if not isinstance(found, NAMED):
        raise PayloadUnreadable(f"no loaded module has a class {name}; name its module in NITRO_HANDLERS")
    return found


def _subscripted(head: Any, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(head, type):
        raise PayloadUnreadable(f"{head!r} takes no arguments here")
    owner = next((base for base in head.__mro__ if "__class_getitem__" in vars(base)), None)
    if hasattr(type(head), "__getitem__") or owner not in (BaseModel, Generic):
        return _plain_alias(head, owner, arguments)
    if owner is BaseModel:
        _check_hooks(arguments)
    generic: Any = head
    try:
        return generic[arguments]
    except Exception as error:  # of pydantic and typing, which have no root of theirs
        raise PayloadUnreadable(f"{head.__qualname__} takes other arguments: {type(error).__name__}") from error


def _plain_alias(head: type, owner: type | None, arguments: tuple[Any, ...]) -> Any:
    """Such as `list[int]`: what Python's own classes make of arguments."""
    own = None if owner is None else getattr(vars(owner)["__class_getitem__"], "__func__", None)
    if head is not type and (owner is None or isinstance(own, FunctionType)):
        raise PayloadUnreadable(f"{head.__qualname__} takes no arguments, or by code of its own")
    return GenericAlias(head, arguments)


def _check_hooks(arguments: Iterable[Any]) -> None:
    """Pydantic would call them to learn what the class takes; those of models have run when these were declared."""
    for argument in arguments:
        if isinstance(argument, type) and not issubclass(argument, BaseModel) and _has_hooks(argument):
            raise PayloadUnreadable(f"{argument.__qualname__} tells pydantic its schema by code of its own")
        _check_hooks(get_args(argument))


def _has_hooks(cls: type) -> bool:
    return any(hook in vars(base) for base in cls.__mro__ for hook in HOOKS)


def _read_literal(parts: list[Json]) -> Any:
    return Literal[tuple(_read_value(part) for part in parts)]


def _read_value(part: Json) -> Any:
    if type(part) is not list:
        return part
    cls, name = _found(part[0]), part[1]
    if not issubclass(cls, Enum):
        raise PayloadUnreadable(f"{part[0]} is no Enum")
    return cls.__members__[name]


def _read_annotated(parts: list[Json]) -> Any:
    return Annotated[(rebuilt(parts[0]), *map(_read_constraint, parts[1:]))]


def _read_constraint(part: Json) -> Any:
    if type(part) is not list:
        return part
    cls: Any = _found(part[0])
    state = part[1]
    if cls.__module__ != CONSTRAINTS or {field.name for field in fields(cls)} != state.keys():
        raise PayloadUnreadable(f"{part[0]} is no constraint")
    constraint: object = object.__new__(cls)
    for name, value in state.items():
        object.__setattr__(constraint, name, value)
    return constraint


def _read_union(parts: list[Json]) -> Any:
    return Union[tuple(map(rebuilt, parts))]  # noqa: UP007  # not equal to what `|` makes


def _read_or(parts: list[Json]) -> Any:
    members = list(map(rebuilt, parts))
    joins: list[Any] = [getattr(type(member), "__or__", None) for member in members]
    if not all(join in (type.__or__, GenericAlias.__or__) for join in joins):
        raise PayloadUnreadable("the payload joins by | what has an | of its own")
    return reduce(or_, members)


MAKERS: dict[str, Callable[[list[Json]], Any]] = {
    "Literal": _read_literal,
    "Annotated": _read_annotated,
    "Union": _read_union,
    "|": _read_or,
}
