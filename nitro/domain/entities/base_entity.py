"""`Entity`: a model that stores and finds itself."""

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


def _id_or_new(given: Any) -> Any:
    return _new_id() if given is None else given


class Entity(SQLModel):
    """An SQLModel that stores and finds itself: `class Order(Entity, table=True)`.

    Every method works in the open `transaction()`, or in a short one of its own. Instances are detached and
    readable outside of a transaction: their relationships load when asked for. They are equal when all their
    fields are, and hash by class and `id`.

    A list or dict in a JSON column is compared by identity, as SQLAlchemy does: assign a new one to save a change.

    Attributes:
        id: primary key; a UUIDv7 as text when absent or None, so that keys sort by creation.
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
        """Class and id, by which events recognise it as a sender; None without an id."""
        known = known_id(self)
        return None if known is None else (type(self), known)

    def save(self) -> Self:
        """Insert or update, and return itself, readable; related new objects are saved too.

        An existing row with a given id gets every value of the instance; related rows that it does not mention stay.
        A stored instance writes only what has changed. One that is attached to a session of the user's own
        is flushed there, and committed by that session.

        Raises:
            NotATable: the class has no table.
            InvalidEntity: a value is not allowed; nothing was written.
            EntityVanished: the row to update is gone.
        """
        store.save(self)
        return self

    def delete(self) -> None:
        """Delete its row, if there is one; `save()` inserts it again."""
        store.delete(self)

    def refresh(self) -> Self:
        """Take the values of its row, dropping unsaved changes, and return itself.

        Raises:
            EntityVanished: the row is gone.
        """
        loading.refresh(self)
        return self

    @classmethod
    def create(cls, /, **fields: Any) -> Self:
        """A new instance with these fields, saved."""
        return cls(**fields).save()

    @classmethod
    def get(cls, id: object) -> Self | None:  # noqa: A002 - the public name
        """The instance with this id, or None."""
        return find.get(cls, id)

    @classmethod
    def find(cls, id: object) -> Self | None:  # noqa: A002 - the public name
        """The instance with this id, or None; another name of `get`."""
        return find.get(cls, id)

    @classmethod
    def exists(cls, id: object) -> bool:  # noqa: A002 - the public name
        """Whether there is a row with this id."""
        return find.exists(cls, id)

    @classmethod
    def all(cls) -> list[Self]:
        """All instances, by id."""
        return find.all_entities(cls)

    @classmethod
    def count(cls, *conditions: Condition) -> int:
        """How many rows there are, or how many of them meet all the conditions."""
        return find.count(cls, *conditions)

    @classmethod
    def where(
        cls, *conditions: Condition, order_by: Ordering = None, limit: int | None = None, offset: int | None = None
    ) -> list[Self]:
        """The instances that meet all the conditions: `Order.where(Order.total > 5, order_by="-total", limit=10)`.

        Args:
            conditions: SQLAlchemy expressions.
            order_by: a field name, `"-name"` for descending, a column or its `desc()`, or a list of these.
            limit: at most so many.
            offset: leave out so many first.
        """
        return find.where(cls, *conditions, order_by=order_by, limit=limit, offset=offset)

    @classmethod
    def find_by(cls, /, **fields: object) -> Self | None:
        """The first instance, by id, whose fields equal the values, or None.

        Raises:
            UnknownField: there is no such field.
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
        """The instances whose fields equal the values; a list, tuple or set means one of its values.

        Raises:
            UnknownField: there is no such field.
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
        """The instances that contain the text, whatever the case, in one of the fields.

        Args:
            text: taken literally; `%` and `_` are no wildcards.
            fields: names; by default every text column that is neither primary nor foreign key.
            order_by: as in `where`.
            limit: at most so many.
            offset: leave out so many first.
        """
        return find.search(cls, text, fields=fields, order_by=order_by, limit=limit, offset=offset)

    @classmethod
    def delete_where(cls, *conditions: Condition) -> int:
        """Delete the rows that meet all the conditions, and return how many; `sqlalchemy.true()` means every row.

        It is one statement: no cascade of relationships runs.

        Raises:
            NotACondition: there was none.
        """
        return store.delete_where(cls, *conditions)

    @classmethod
    def init_db(cls) -> None:
        """Create the tables of all declared classes where they are missing; on SQLite that happens by itself."""
        create_tables()


loading.enable_detached_loading(Entity)
