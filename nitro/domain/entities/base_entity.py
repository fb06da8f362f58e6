"""`Entity`: an SQLModel with the methods of an active record."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Self

import uuid_utils
from pydantic import BeforeValidator
from sqlmodel import Field, SQLModel

from nitro.infrastructure.database import create_tables
from nitro.infrastructure.repository import find, loading, store
from nitro.infrastructure.repository.graph import known_id
from nitro.infrastructure.repository.query import Condition, Ordering


def _new_id() -> str:
    return str(uuid_utils.uuid7())


def _id_or_new(value: Any) -> Any:
    return _new_id() if value is None else value


class Entity(SQLModel):
    """An SQLModel that saves and finds itself: `class Order(Entity, table=True)`.

    Every method works in the open `transaction()`, or in a short transaction of its own. Outside of a transaction
    instances are detached and readable: relationships load at their first access. Instances are equal if all their
    fields are equal, and their hash is that of class and `id`.

    A list or dict in a JSON column is compared by identity, as in SQLAlchemy: assign a new object to save a change.

    Attributes:
        id: primary key; an absent id or None becomes a UUIDv7 as text, so that keys sort by creation.
        __nitro_show__: names of the fields whose values monitoring (Flower, logs) may show; none by default.
    """

    __nitro_show__: ClassVar[tuple[str, ...]] = ()

    id: Annotated[str, BeforeValidator(_id_or_new)] = Field(default_factory=_new_id, primary_key=True)

    def __init__(self, /, **fields: Any) -> None:
        if "id" in fields and fields["id"] is None:
            del fields["id"]
        super().__init__(**fields)

    def __hash__(self) -> int:
        return hash((type(self), known_id(self)))

    @property
    def __nitro_identity__(self) -> tuple[type, object] | None:
        """Class and id, by which events recognise the entity as a sender; None without an id."""
        key = known_id(self)
        return None if key is None else (type(self), key)

    def save(self) -> Self:
        """Inserts or updates the row, and returns the instance; related new objects are saved too.

        If a row with an assigned id exists, it gets every value of the instance. A stored instance writes its changed
        columns only. Related rows that the instance does not reference stay. An instance in a session of the user is
        flushed there, and that session commits it.

        Raises:
            NotATable: the class has no table.
            InvalidEntity: a value is not allowed; nothing was written.
            EntityVanished: the row to update does not exist any more.
        """
        store.save(self)
        return self

    def delete(self) -> None:
        """Deletes the row, if it exists; `save()` inserts it again."""
        store.delete(self)

    def refresh(self) -> Self:
        """Reads all values from the row, drops unsaved changes, and returns the instance.

        Raises:
            EntityVanished: the row does not exist any more.
        """
        loading.refresh(self)
        return self

    @classmethod
    def create(cls, /, **fields: Any) -> Self:
        """Creates and saves an instance with these fields."""
        return cls(**fields).save()

    @classmethod
    def get(cls, id: object) -> Self | None:  # noqa: A002 - the public name
        """Returns the instance with this id, or None."""
        return find.get(cls, id)

    @classmethod
    def find(cls, id: object) -> Self | None:  # noqa: A002 - the public name
        """Returns the instance with this id, or None; another name of `get`."""
        return find.get(cls, id)

    @classmethod
    def exists(cls, id: object) -> bool:  # noqa: A002 - the public name
        """Whether a row with this id exists."""
        return find.exists(cls, id)

    @classmethod
    def all(cls) -> list[Self]:
        """Returns all instances, ordered by id."""
        return find.all_entities(cls)

    @classmethod
    def count(cls, *conditions: Condition) -> int:
        """Returns the number of rows, or of the rows that meet all the conditions."""
        return find.count(cls, *conditions)

    @classmethod
    def where(
        cls, *conditions: Condition, order_by: Ordering = None, limit: int | None = None, offset: int | None = None
    ) -> list[Self]:
        """Returns the instances that meet all the conditions.

        Example: `Order.where(Order.total > 5, order_by="-total", limit=10)`.

        Args:
            conditions: SQLAlchemy expressions.
            order_by: a field name, `"-name"` for descending, a column or its `desc()`, or a list of them.
            limit: maximum number of instances.
            offset: number of instances to skip.
        """
        return find.where(cls, *conditions, order_by=order_by, limit=limit, offset=offset)

    @classmethod
    def find_by(cls, /, **fields: object) -> Self | None:
        """Returns the first instance, ordered by id, whose fields equal the values, or None.

        Raises:
            UnknownField: the entity has no such field.
        """
        return find.find_by(cls, **fields)

    @classmethod
    def filter(
        cls,
        /,
        *conditions: Condition,
        order_by: Ordering = None,
        limit: int | None = None,
        offset: int | None = None,
        **fields: object,
    ) -> list[Self]:
        """Returns the instances whose fields equal the values; a list, tuple or set means any of its values.

        Raises:
            UnknownField: the entity has no such field.
        """
        return find.where(cls, *conditions, order_by=order_by, limit=limit, offset=offset, **fields)

    @classmethod
    def search(
        cls,
        text: str,
        *,
        fields: Iterable[str] | None = None,
        order_by: Ordering = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> list[Self]:
        """Returns the instances that contain the text in one of the fields; upper and lower case are equal.

        Args:
            text: literal text; `%` and `_` are no wildcards.
            fields: field names; the default is every text column that is neither primary nor foreign key.
            order_by: as in `where`.
            limit: maximum number of instances.
            offset: number of instances to skip.
        """
        return find.search(cls, text, fields=fields, order_by=order_by, limit=limit, offset=offset)

    @classmethod
    def delete_where(cls, *conditions: Condition) -> int:
        """Deletes the rows that meet all the conditions, and returns their number; `sqlalchemy.true()` means every row.

        The method runs one DELETE statement, without cascades of relationships.

        Raises:
            NotACondition: no condition was given.
        """
        return store.delete_where(cls, *conditions)

    @classmethod
    def init_db(cls) -> None:
        """Creates the missing tables of all declared classes; on SQLite this happens automatically."""
        create_tables()


loading.enable_detached_loading(Entity)
