"""Entities as rows of the payload's table; the reader rebuilds them as if a query had just loaded them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING
from inspect import signature
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from sqlalchemy import Column, inspect
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import InstanceState, LoaderCallableStatus, Mapper, RelationshipProperty, make_transient_to_detached
from sqlalchemy.orm.attributes import flag_modified, instance_state, set_committed_value
from sqlalchemy.orm.collections import collection_adapter
from sqlmodel import SQLModel

from nitro.errors import NitroError
from nitro.infrastructure.offload.codec.names import ValueRefused, check_id
from nitro.infrastructure.offload.codec.references import reference_of
from nitro.infrastructure.offload.codec.scalars import Json
from nitro.infrastructure.offload.codec.shapes import (
    ModelShape,
    PydanticState,
    Reader,
    Writer,
    default_of,
    missing_field_error,
)
from nitro.infrastructure.repository.graph import DYNAMIC_LOADERS
from nitro.infrastructure.repository.loading import enable_detached_queries, load_expired, mark_unread, unread_columns

JSON_SCALARS = frozenset({str, int, float, bool, type(None)})
"""Types that JSON has itself."""
NO_NAMES: list[Json] = []


class StandaloneEntityShape(ModelShape):
    """Writes and reads entities of a class without a table."""

    __slots__ = ()

    cls: type[SQLModel]

    def __init__(self, cls: type[SQLModel]) -> None:
        super().__init__(cls)

    def snapshot(self, writer: Writer, entity: SQLModel) -> Json:
        """Returns the row of an entity: its class and state."""
        check_id(self.cls, vars(entity).get("id"))
        return self.state(writer, entity)

    def key(self, _writer: Writer, entity: SQLModel) -> Json:
        """Raises ValueRefused: an entity without a table has no row that could be read again."""
        raise ValueRefused(
            type(entity), "it has no table to be reloaded from; use entity='snapshot' or declare table=True"
        )

    def blank_instance(self, reader: Reader, row: dict[str, Json]) -> SQLModel:
        """Returns an instance with its id and nothing else."""
        entity: SQLModel = self.cls.__new__(self.cls)
        if "id" in row["fields"]:
            vars(entity)["id"] = reader.value(row["fields"]["id"])
        return entity

    def restore_state(self, reader: Reader, entity: SQLModel, row: dict[str, Json]) -> None:
        """Restores the state of an instance."""
        self.restore(reader, entity, row)

    def restore_links(self, reader: Reader, entity: SQLModel, row: dict[str, Json]) -> None:
        """Does nothing: an entity without a table refers to other entities by its fields."""


class TableEntityShape:
    """Writes and reads entities of a mapped class: the columns and relationships that are loaded.

    A column that is neither in `columns` nor in `absent` of a row was added to the class after the emit.
    """

    __slots__ = (
        *("_cls", "_columns", "_eager", "_factories", "_fields", "_key_set", "_keys", "_mapper", "_order"),
        *("_pydantic_state", "_queried", "_relationships"),
    )

    def __init__(self, cls: type[Any]) -> None:
        mapper: Mapper[Any] = inspect(cls)
        self._cls, self._mapper = cls, mapper
        self._keys = tuple(mapper.get_property_by_column(column).key for column in mapper.primary_key)
        self._key_set = frozenset(self._keys)
        self._order = tuple(mapper.column_attrs.keys())
        self._columns = frozenset(self._order)
        eager = frozenset(attribute.key for attribute in mapper.column_attrs if not attribute.deferred)
        self._eager = eager.difference(self._keys)
        self._relationships = {link.key: link for link in mapper.relationships if link.lazy not in DYNAMIC_LOADERS}
        self._queried = [link.key for link in mapper.relationships if link.lazy in DYNAMIC_LOADERS]
        self._fields: dict[str, FieldInfo] = cls.model_fields if issubclass(cls, BaseModel) else {}
        self._factories = _default_factories(cls)
        self._pydantic_state = PydanticState(cls) if issubclass(cls, BaseModel) else None
        enable_detached_queries(mapper)

    def snapshot(self, writer: Writer, entity: Any) -> Json:
        """Returns the row of an entity: class, columns, relationships, and whether the database has it."""
        attributes, state = vars(entity), instance_state(entity)
        stored = state.key is not None
        if stored and state.expired_attributes:
            self._load_expired(entity, state)
        values = attributes
        if stored and not attributes.keys() >= self._key_set:
            values = {**dict(zip(self._keys, state.identity or (), strict=False)), **attributes}
        for name in self._keys:
            check_id(self._cls, values.get(name))
        links = {
            name: _related(attributes[name], link) for name, link in self._relationships.items() if name in attributes
        }
        if self._queried and not stored:
            links |= {name: list(state.attrs[name].history.added) for name in self._queried}
        columns = writer.attributes(values, self._columns)
        row = {
            "class": reference_of(self._cls),
            "stored": stored,
            "columns": columns,
            "links": writer.attributes(links),
            "absent": NO_NAMES if len(columns) == len(self._columns) else sorted(self._columns.difference(columns)),
        }
        if self._pydantic_state is not None:
            self._pydantic_state.write(writer, entity, row)
        return row

    def key(self, writer: Writer, entity: object) -> Json:
        """Returns class and primary key, by which the worker reads the row."""
        identity = instance_state(entity).identity or tuple(vars(entity).get(name) for name in self._keys)
        if None in identity:
            raise ValueRefused(self._cls, "it has no primary key yet; save it first, or use entity='snapshot'")
        for part in identity:
            check_id(self._cls, part)
        return [reference_of(self._cls), writer.value(identity[0] if len(identity) == 1 else tuple(identity))]

    def blank_instance(self, reader: Reader, row: dict[str, Json]) -> object:
        """Returns an instance with its primary key, from which its hash is computed, and nothing else."""
        entity: object = self._mapper.class_manager.new_instance()
        columns = row["columns"]
        vars(entity).update((name, reader.value(columns[name])) for name in self._keys if name in columns)
        return entity

    def restore_state(self, reader: Reader, entity: Any, row: dict[str, Json]) -> None:
        """Restores the columns; a column that no longer exists is left out."""
        attributes, columns, has_removed = vars(entity), self._columns, False
        for name, item in row["columns"].items():
            if name in columns:
                attributes[name] = item if type(item) in JSON_SCALARS else reader.value(item)
            else:
                has_removed = True
        if has_removed or len(row["columns"]) < len(columns):
            self._add_defaults(entity, row)
        if self._pydantic_state is not None:
            self._pydantic_state.restore(reader, entity, row)

    def restore_links(self, reader: Reader, entity: object, row: dict[str, Json]) -> None:
        """Restores the relationships, and the state of the instance: detached, or not stored yet."""
        links = {name: reader.value(item) for name, item in row["links"].items() if name in self._relationships}
        for name, linked in links.items():
            set_committed_value(entity, name, linked)
        if row["stored"]:
            make_transient_to_detached(entity)
        else:
            self._mark_added(reader, entity, links, row)
        # SQLAlchemy's `load` event, as after a query, starts the tracking of JSON columns and runs reconstructors.
        on_load = self._mapper.class_manager.dispatch.load
        if on_load:
            on_load(instance_state(entity), None)

    def _mark_added(self, reader: Reader, entity: object, links: dict[str, Any], row: dict[str, Json]) -> None:
        """Marks linked instances as added: a flush sets the foreign keys of added instances only."""
        for name, linked in links.items():
            if linked:
                flag_modified(entity, name)
        for name in self._queried:
            getattr(entity, name).add_all(reader.value(row["links"].get(name, [])))

    def _add_defaults(self, entity: object, row: dict[str, Json]) -> None:
        """Sets defaults of columns that were added after the emit; a column that was absent then stays unread."""
        attributes, stored = vars(entity), row["stored"]
        absent_if_unknown = self._columns if stored else ()  # payloads of older versions have no "absent"
        added = self._columns.difference(attributes, row.get("absent", absent_if_unknown))
        for name in filter(added.__contains__, self._order):
            value = self._default(name, attributes, stored)
            if value is not PydanticUndefined:
                attributes[name] = value
            elif not stored and "absent" in row and self._is_required(name):
                raise missing_field_error(self._cls, name)
        if stored:
            mark_unread(entity, self._columns.difference(attributes))

    def _default(self, name: str, attributes: dict[str, Any], stored: bool) -> Any:
        """Returns the default of a column: of the model, else of the dataclass, else of an INSERT."""
        value: Any = PydanticUndefined
        if name in self._fields:
            value = default_of(self._fields[name], attributes)
        elif name in self._factories:
            value = self._factories[name]()
        default = getattr(self._column(name), "default", None)
        # SQLAlchemy gives a field with `init=False` a LoaderCallableStatus as its default.
        has_no_default = value is PydanticUndefined or isinstance(value, LoaderCallableStatus)
        if not has_no_default or default is None:
            return PydanticUndefined if has_no_default else value
        if default.is_scalar:
            return default.arg
        if default.is_callable and not stored and _has_no_parameters(default.arg):
            return default.arg(None)
        return PydanticUndefined

    def _is_required(self, name: str) -> bool:
        column = self._column(name)
        if not isinstance(column, Column) or column.default is not None or column.server_default is not None:
            return False
        return not column.nullable or (name in self._fields and self._fields[name].is_required())

    def _column(self, name: str) -> object:
        return self._mapper.column_attrs[name].columns[0]

    def _load_expired(self, entity: object, state: InstanceState[Any]) -> None:
        names = self._eager.intersection(state.expired_attributes).difference(vars(entity), unread_columns(state))
        try:
            if names:
                load_expired(entity, names)
        except (NitroError, SQLAlchemyError, OSError) as error:
            listed = ", ".join(sorted(names))
            raise ValueRefused(
                self._cls,
                f"its expired columns could not be read again ({listed}: {error}); refresh it before the emit",
            ) from error


EntityShape = StandaloneEntityShape | TableEntityShape


def _related(value: Any, link: RelationshipProperty[Any]) -> object:
    return list(collection_adapter(value)) if link.uselist else value


def _default_factories(cls: type[Any]) -> dict[str, Callable[[], object]]:
    """Returns the default factory of each field of a mapped dataclass that has one."""
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    return {field.name: field.default_factory for field in fields if field.default_factory is not MISSING}


def _has_no_parameters(default: Callable[..., object]) -> bool:
    """Whether a column's default is a function without parameters, wrapped by SQLAlchemy, that needs no INSERT."""
    wrapped = getattr(default, "__wrapped__", None)
    try:
        return wrapped is not None and signature(wrapped).bind() is not None
    except TypeError:
        return False
    except ValueError:  # a class such as dict has no signature
        return True
