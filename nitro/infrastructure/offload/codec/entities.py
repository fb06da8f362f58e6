"""Entities: each one row of the payload's table, rebuilt as if it had just been read from the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import InstanceState, Mapper, RelationshipProperty, make_transient_to_detached
from sqlalchemy.orm.attributes import flag_modified, instance_state, set_committed_value
from sqlalchemy.orm.collections import collection_adapter
from sqlmodel import SQLModel

from nitro.infrastructure.offload.codec.references import Refused, check_id, reference_of
from nitro.infrastructure.offload.codec.scalars import Json
from nitro.infrastructure.offload.codec.shapes import ModelShape, pydantic_state, restore_pydantic_state

if TYPE_CHECKING:
    from nitro.infrastructure.offload.codec.reader import Reader
    from nitro.infrastructure.offload.codec.writer import Writer

WITHOUT_COLLECTION = ("dynamic", "write_only")
PLAIN = frozenset({str, int, float, bool, type(None)})
"""Types of JSON that stand for themselves."""


class StandaloneEntity(ModelShape):
    """Entities of one class without a table."""

    __slots__ = ()

    cls: type[SQLModel]

    def __init__(self, cls: type[SQLModel]) -> None:
        super().__init__(cls)

    def snapshot(self, writer: Writer, entity: SQLModel) -> Json:
        """Its row: class and state."""
        check_id(self.cls, vars(entity).get("id"))
        return self.state(writer, entity)

    def key(self, _writer: Writer, entity: SQLModel) -> Json:
        """Always refused: there is no row to read again."""
        raise Refused(type(entity), "it has no table to be reloaded from; use entity='snapshot' or declare table=True")

    def blank(self, reader: Reader, row: dict[str, Json]) -> SQLModel:
        """An instance that has its id and nothing else."""
        entity: SQLModel = self.cls.__new__(self.cls)
        if "id" in row["fields"]:
            vars(entity)["id"] = reader.value(row["fields"]["id"])
        return entity

    def fill(self, reader: Reader, entity: SQLModel, row: dict[str, Json]) -> None:
        """Put in the state."""
        self.restore(reader, entity, row)

    def connect(self, reader: Reader, entity: SQLModel, row: dict[str, Json]) -> None:
        """Nothing more to do: it refers to others by its fields."""


class TableEntity:
    """Entities of one table class: the columns and relationships that are loaded."""

    __slots__ = ("_cls", "_columns", "_eager", "_keys", "_mapper", "_relationships")

    def __init__(self, cls: type[SQLModel]) -> None:
        mapper: Mapper[Any] = inspect(cls)
        self._cls, self._mapper = cls, mapper
        self._columns = frozenset(mapper.column_attrs.keys())
        self._eager = frozenset(attribute.key for attribute in mapper.column_attrs if not attribute.deferred)
        self._keys = tuple(mapper.get_property_by_column(column).key for column in mapper.primary_key)
        self._relationships = {link.key: link for link in mapper.relationships if link.lazy not in WITHOUT_COLLECTION}

    def snapshot(self, writer: Writer, entity: SQLModel) -> Json:
        """Its row: class, columns and relationships, and whether it was stored before."""
        held, state = vars(entity), instance_state(entity)
        if state.expired_attributes and state.session is not None:
            self._load_expired(entity, state)
        stored = state.key is not None
        known = {**dict(zip(self._keys, state.identity or (), strict=False)), **held} if stored else held
        for name in self._keys:
            check_id(self._cls, known.get(name))
        links = {name: _linked(held[name], link) for name, link in self._relationships.items() if name in held}
        return {
            "class": reference_of(self._cls),
            "stored": stored,
            "columns": writer.attributes(known, self._columns),
            "links": writer.attributes(links),
            **pydantic_state(writer, entity),
        }

    def key(self, writer: Writer, entity: SQLModel) -> Json:
        """Class and primary key, for reading the row again."""
        identity = instance_state(entity).identity or tuple(vars(entity).get(name) for name in self._keys)
        if None in identity:
            raise Refused(self._cls, "it has no primary key yet; save it first, or use entity='snapshot'")
        for part in identity:
            check_id(self._cls, part)
        return [reference_of(self._cls), writer.value(identity[0] if len(identity) == 1 else tuple(identity))]

    def blank(self, reader: Reader, row: dict[str, Json]) -> SQLModel:
        """An instance that has its primary key, by which it hashes, and nothing else."""
        entity: SQLModel = self._mapper.class_manager.new_instance()
        columns, held = row["columns"], vars(entity)
        held.update((name, reader.value(columns[name])) for name in self._keys if name in columns)
        return entity

    def fill(self, reader: Reader, entity: SQLModel, row: dict[str, Json]) -> None:
        """Put in the columns; a column that no longer exists is left out."""
        held, columns = vars(entity), self._columns
        for name, item in row["columns"].items():
            if name in columns:
                held[name] = item if type(item) in PLAIN else reader.value(item)
        restore_pydantic_state(reader, entity, row)

    def connect(self, reader: Reader, entity: SQLModel, row: dict[str, Json]) -> None:
        """Put in the relationships and make the instance what it was: detached, or not stored yet."""
        links = {name: reader.value(item) for name, item in row["links"].items() if name in self._relationships}
        for name, linked in links.items():
            set_committed_value(entity, name, linked)
        if row["stored"]:
            make_transient_to_detached(entity)
        else:
            # A flush sets the foreign keys of those that count as added only.
            for name, linked in links.items():
                if linked:
                    flag_modified(entity, name)
        # As after a query: tracked JSON columns get their tracking back, and reconstructors run.
        loaded = self._mapper.class_manager.dispatch.load
        if loaded:
            loaded(instance_state(entity), None)

    def _load_expired(self, entity: SQLModel, state: InstanceState[Any]) -> None:
        try:
            for name in self._eager & state.expired_attributes:
                getattr(entity, name)
        except InvalidRequestError as error:
            raise Refused(
                self._cls, f"its expired columns could not be read again ({error.args[0]}); refresh it before the emit"
            ) from error


EntityShape = StandaloneEntity | TableEntity


def _linked(value: Any, link: RelationshipProperty[Any]) -> object:
    return list(collection_adapter(value)) if link.uselist else value
