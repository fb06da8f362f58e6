"""Parametrised classes, such as `Box[int]`: written as origin and arguments, rebuilt from loaded classes.

    reference = name | [head, [argument, …]]      name = "module:qualname" | a name of `SPECIAL`

Only the `[]` of pydantic and typing is called, so that a message cannot run code of a class that it names.
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
from nitro.infrastructure.offload.codec.names import ValueRefused, find_named, name_of
from nitro.infrastructure.offload.codec.scalars import Json

NAMED_TYPES = (type, TypeVar, NewType, TypeAliasType)
SPECIAL_NAMES: dict[str, Any] = {"Any": Any, "None": None, "NoneType": NoneType, "...": ..., "object": object}
TYPING_ALIASES = {
    name: getattr(typing, name)
    for name in (
        *("List", "Dict", "Set", "FrozenSet", "Tuple", "Type", "Deque", "DefaultDict", "OrderedDict", "Counter"),
        *("Collection", "Container", "Iterable", "Iterator", "Sequence", "MutableSequence"),
        *("Mapping", "MutableMapping", "AbstractSet", "MutableSet"),
    )
}
"""Aliases of the typing module: unequal to the classes that they are aliases of."""
PYDANTIC_HOOKS = ("__get_pydantic_core_schema__", "__get_validators__")
LITERAL_TYPES = (str, int, bool, NoneType)
CONSTRAINTS_MODULE = "annotated_types"


def is_parametrised(cls: type) -> bool:
    """Whether pydantic has made a class from a generic model."""
    return origin_and_arguments(cls)[0] is not None


def origin_and_arguments(cls: object) -> tuple[Any, tuple[Any, ...]]:
    """Returns origin and arguments of a parametrised class or alias; origin None for any other class."""
    metadata = vars(cls).get("__pydantic_generic_metadata__") if isinstance(cls, type) else None
    if metadata is not None:
        return metadata["origin"], metadata["args"]
    return (None, ()) if isinstance(cls, type) else (get_origin(cls), get_args(cls))


def write_reference(part: Any) -> Json:
    """Returns the reference to a class, an alias or an argument.

    Raises:
        ValueRefused: a worker could not make it again.
    """
    special = next((name for name, value in SPECIAL_NAMES.items() if value is part), None)
    if special is not None:
        return special
    origin, args = origin_and_arguments(part)
    if origin is None:
        return _required_name(part)
    if origin is Literal:
        return ["Literal", [_write_literal(value) for value in args]]
    if origin is Annotated:
        return ["Annotated", [write_reference(args[0]), *map(_write_constraint, args[1:])]]
    return [_head_name(part, origin), [write_reference(argument) for argument in args]]


def read_reference(reference: Json) -> Any:
    """Returns the class, alias or argument of a reference.

    Raises:
        PayloadUnreadable: a part of it is in no loaded module, or is not allowed.
    """
    if type(reference) is str:
        return SPECIAL_NAMES[reference] if reference in SPECIAL_NAMES else _find_type(reference)
    head, parts = reference
    if type(parts) is not list or not parts:
        raise PayloadUnreadable("the payload has a parametrised class without arguments")
    if head in FORM_READERS:
        return FORM_READERS[head](parts)
    arguments = tuple(map(read_reference, parts))
    return TYPING_ALIASES[head][arguments] if head in TYPING_ALIASES else _subscript(_find_type(head), arguments)


def _head_name(part: Any, origin: Any) -> str:
    if origin is Union or origin is UnionType:
        return "|" if isinstance(part, UnionType) else "Union"
    name: str = getattr(part, "__name__", "")
    if not isinstance(part, type | GenericAlias) and part.__module__ == "typing" and name in TYPING_ALIASES:
        return name
    return _required_name(origin)


def _required_name(part: Any) -> str:
    name = name_of(part) if isinstance(part, NAMED_TYPES) else None
    if name is None:
        raise ValueRefused(type(part), f"{part!r} has no name in a module")
    return name


def _write_literal(value: Any) -> Json:
    if isinstance(value, Enum):
        return [_required_name(type(value)), value.name]
    return _write_plain(value)


def _write_plain(value: Any) -> Json:
    if type(value) not in LITERAL_TYPES:
        raise ValueRefused(type(value), f"{value!r} cannot stand in the name of a class")
    return value


def _write_constraint(value: Any) -> Json:
    """Returns the class and fields of a constraint of `annotated_types`, such as `Gt(0)`, or a plain value."""
    if type(value).__module__ != CONSTRAINTS_MODULE or not is_dataclass(value):
        return _write_plain(value)
    return [
        _required_name(type(value)),
        {field.name: _write_plain(getattr(value, field.name)) for field in fields(value)},
    ]


def _find_type(name: str) -> Any:
    named = find_named(name)
    if not isinstance(named, NAMED_TYPES):
        raise PayloadUnreadable(f"no loaded module has a class {name}; name its module in NITRO_HANDLERS")
    return named


def _subscript(head: Any, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(head, type):
        raise PayloadUnreadable(f"{head!r} takes no arguments here")
    owner = next((base for base in head.__mro__ if "__class_getitem__" in vars(base)), None)
    if hasattr(type(head), "__getitem__") or owner not in (BaseModel, Generic):
        return _builtin_alias(head, owner, arguments)
    if owner is BaseModel:
        _check_hooks(arguments)
    generic: Any = head
    try:
        return generic[arguments]
    except Exception as error:  # pydantic and typing raise errors without a common base class
        raise PayloadUnreadable(f"{head.__qualname__} takes other arguments: {type(error).__name__}") from error


def _builtin_alias(head: type, owner: type | None, arguments: tuple[Any, ...]) -> Any:
    """Returns the alias of a class of Python itself with arguments, such as `list[int]`."""
    method = None if owner is None else getattr(vars(owner)["__class_getitem__"], "__func__", None)
    if head is not type and (owner is None or isinstance(method, FunctionType)):
        raise PayloadUnreadable(f"{head.__qualname__} takes no arguments, or by code of its own")
    return GenericAlias(head, arguments)


def _check_hooks(arguments: Iterable[Any]) -> None:
    """Raises PayloadUnreadable for an argument with a hook that pydantic would call to build a schema.

    Hooks of models are allowed: they have run when the models were declared.
    """
    for argument in arguments:
        if isinstance(argument, type) and not issubclass(argument, BaseModel) and _has_hooks(argument):
            raise PayloadUnreadable(f"{argument.__qualname__} tells pydantic its schema by code of its own")
        _check_hooks(get_args(argument))


def _has_hooks(cls: type) -> bool:
    return any(hook in vars(base) for base in cls.__mro__ for hook in PYDANTIC_HOOKS)


def _read_literal(parts: list[Json]) -> Any:
    return Literal[tuple(_read_value(part) for part in parts)]


def _read_value(part: Json) -> Any:
    if type(part) is not list:
        return part
    cls, name = _find_type(part[0]), part[1]
    if not issubclass(cls, Enum):
        raise PayloadUnreadable(f"{part[0]} is no Enum")
    return cls.__members__[name]


def _read_annotated(parts: list[Json]) -> Any:
    return Annotated[(read_reference(parts[0]), *map(_read_constraint, parts[1:]))]


def _read_constraint(part: Json) -> Any:
    if type(part) is not list:
        return part
    cls: Any = _find_type(part[0])
    state = part[1]
    if cls.__module__ != CONSTRAINTS_MODULE or {field.name for field in fields(cls)} != state.keys():
        raise PayloadUnreadable(f"{part[0]} is no constraint")
    constraint: object = object.__new__(cls)
    for name, value in state.items():
        object.__setattr__(constraint, name, value)
    return constraint


def _read_union(parts: list[Json]) -> Any:
    return Union[tuple(map(read_reference, parts))]  # noqa: UP007  # not equal to what `|` makes


def _read_or(parts: list[Json]) -> Any:
    members = list(map(read_reference, parts))
    joins: list[Any] = [getattr(type(member), "__or__", None) for member in members]
    if not all(join in (type.__or__, GenericAlias.__or__) for join in joins):
        raise PayloadUnreadable("the payload joins by | what has an | of its own")
    return reduce(or_, members)


FORM_READERS: dict[str, Callable[[list[Json]], Any]] = {
    "Literal": _read_literal,
    "Annotated": _read_annotated,
    "Union": _read_union,
    "|": _read_or,
}
