"""The error tree: one root, messages from facts, and the tree in the docstring is the one in the code."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from typing import Any

import pytest

from nitro import errors
from nitro.errors import (
    DeliveryLost,
    DispatchError,
    DuplicateHandler,
    EntityVanished,
    InvalidEntity,
    NitroError,
    NoDatabase,
    NoDispatcher,
    NotACondition,
    NotATable,
    NotOffloadable,
    NotTracked,
    OptionConflict,
    OptionNotSerializable,
    OutboxElsewhere,
    OutboxOutdated,
    PayloadError,
    SettingError,
    SignatureRefused,
    UnknownField,
    UnknownOption,
    WrongThread,
)

FOUND = {found for _, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, NitroError)}
CLASSES = sorted(FOUND, key=lambda error: error.__name__)

EXAMPLES = [
    (SettingError("NITRO_JOURNAL", "maybe", "off"), ("NITRO_JOURNAL", "'maybe'", "off")),
    (UnknownOption("quue", ["queue"]), ("'quue'", "'queue'")),
    (NoDatabase(["shop.mail", "shop.stock"], "at-least-once"), ("shop.mail, shop.stock", "NITRO_DB_URL", "'broker'")),
    (OptionNotSerializable("shop.mail", "a datetime"), ("shop.mail", "a datetime")),
    (OutboxOutdated("sqlite:///a.db", None, 1), ("sqlite:///a.db", "missing", "nitro init")),
    (OutboxOutdated("sqlite:///a.db", 1, 2), ("version 1", "needs 2", "nitro init")),
    (OutboxOutdated("sqlite:///a.db", 3, 2), ("version 3", "knows 2", "update the library")),
    (OutboxOutdated("sqlite:///a.db", 0, 2), ("have no version", "takes them over")),
    (OutboxOutdated("sqlite:///a.db", 2, 2, ["nitro_worker"]), ("nitro_worker is missing", "nitro init")),
    (OutboxElsewhere("pg://a", ["app", "old"]), ("app and old", "search path")),
    (OutboxElsewhere("pg://a", ["app"], "new"), ("app", "new", "without --schema")),
    (DeliveryLost("shop.mail", "e1", 2), ("shop.mail", "e1", "attempt 2")),
    (OptionConflict("shop.mail", {"rate_limit", "max_retries"}), ("shop.mail", "max_retries, rate_limit")),
    (DuplicateHandler("shop.mail", "first (a.py:1)", "second (b.py:2)"), ("shop.mail", "a.py:1", "b.py:2")),
    (NoDispatcher("nitro.dispatchers", []), ("no installed", "'nitro.dispatchers'", "install nitro-celery")),
    (NoDispatcher("nitro.dispatchers", ["a (b:c)", "d (e:f)"]), ("several", "a (b:c), d (e:f)", "all but one")),
    (NotOffloadable("shop.mail", "it is a lambda", "give it name="), ("shop.mail", "lambda", "name=")),
    (PayloadError("kwargs['file']", "TextIOWrapper", "pass its name", ["shop.mail"]), ("kwargs['file']", "shop.mail")),
    (SignatureRefused("shop.mail"), ("shop.mail", "NITRO_SIGNING_KEY")),
    (NotATable("Order", "save"), ("Order.save()", "table=True")),
    (InvalidEntity("Order", ["total: not a number"]), ("Order", "total: not a number")),
    (EntityVanished("Order", "saving"), ("Order", "saving")),
    (UnknownField("Order", "totl", ["total"]), ("Order", "'totl'", "'total'")),
    (NotACondition("Order", "delete_where", "nothing"), ("Order.delete_where()", "nothing")),
    (WrongThread("drain()", "await drain_async()"), ("drain()", "await drain_async()")),
    (DispatchError("placed", ["shop.mail"], OSError("refused")), ("placed", "shop.mail", "refused")),
    (NotTracked("e1"), ("e1", "revoke")),
]
EXAMPLE_IDS = [type(error).__name__ for error, _ in EXAMPLES]


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_tree_in_the_docstring_is_complete(error: type[NitroError]) -> None:
    """The docstring of the module lists every error exactly once."""
    assert len(re.findall(rf"\b{error.__name__}\b", errors.__doc__ or "")) == 1


@pytest.mark.parametrize(
    ("old", "new"), [(errors.ContextStays, errors.ContextNotSerializable), (errors.OptionStays, OptionNotSerializable)]
)
def test_a_renamed_error_is_caught_by_its_old_name(old: type[NitroError], new: type[NitroError]) -> None:
    """The old names of version 0.1.0 still work in code and pickles."""
    assert old is new


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_every_error_says_what_it_means(error: type[NitroError]) -> None:
    """Classes of errors each have their own docstring."""
    assert vars(error).get("__doc__")


@pytest.mark.parametrize(("error", "facts"), EXAMPLES, ids=EXAMPLE_IDS)
def test_message_holds_the_facts(error: NitroError, facts: tuple[str, ...]) -> None:
    """The class writes the message; the raise site passes facts."""
    assert all(fact in str(error) for fact in facts)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        ("SettingError", ValueError),
        ("DeclarationError", TypeError),
        ("EmitError", TypeError),
        ("PayloadError", TypeError),
        ("PayloadUnreadable", ValueError),
        ("EntityVanished", LookupError),
        ("DispatchError", RuntimeError),
        ("NotTracked", LookupError),
    ],
)
def test_error_is_also_the_builtin_one_that_fits(error: str, builtin: type[Exception]) -> None:
    """Code without a reference to Nitro catches the error by its builtin base class."""
    assert issubclass(getattr(errors, error), builtin)


@pytest.mark.parametrize(("error", "facts"), EXAMPLES, ids=EXAMPLE_IDS)
@pytest.mark.parametrize("copied", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy], ids=["pickle", "copy"])
def test_error_survives_a_process_boundary(error: NitroError, facts: tuple[str, ...], copied: Any) -> None:
    """An error keeps class and message when Celery's pool or `multiprocessing` pickles it."""
    arrived = copied(error)
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
