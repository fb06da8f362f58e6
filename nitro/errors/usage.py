"""Errors of settings, declarations, emits, payloads and transactions, and the root of all errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class NitroError(Exception):
    """The root of the tree: `except NitroError` catches every error that Nitro itself raises."""

    __module__ = "nitro.errors"

    def __init_subclass__(cls) -> None:
        """Sets the module that tracebacks and pickles name to `nitro.errors`, from which users import the class."""
        cls.__module__ = NitroError.__module__

    def __init__(self, message: str = "") -> None:
        # Exception.__init__ is not called, so `args` stay the arguments: pickle and result backends rebuild the error
        # from them.
        self.message = message

    def __str__(self) -> str:
        return self.message


class SettingError(NitroError, ValueError):
    """A `NITRO_*` variable has a value that is not allowed."""

    def __init__(self, name: str, value: str, allowed: str) -> None:
        super().__init__(f"{name}={value!r} is not allowed; give {allowed}")


class HandlersFailed(SettingError):
    """A module of NITRO_HANDLERS cannot be imported."""

    def __init__(self, module: str, error: BaseException, place: str | None) -> None:
        location = "" if place is None else f" ({place})"
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        self.module = module
        NitroError.__init__(
            self, f"NITRO_HANDLERS names the module {module!r}, which cannot be imported: {cause}{location}"
        )


class DriverOptionStays(NitroError, ValueError):
    """An option of an asynchronous driver that the synchronous driver lacks."""


class DeclarationError(NitroError, TypeError):
    """`@on`, `event` or `bind` was used in a way that cannot work."""


class UnknownOption(DeclarationError):
    """An offload option that neither Celery nor Nitro has."""

    def __init__(self, option: str, nearest: Sequence[str]) -> None:
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        super().__init__(f"offload has no option {option!r}{hint}")


class OptionConflict(DeclarationError):
    """A function was offloaded twice with different options of its one Celery task."""

    def __init__(self, handler: str, options: Iterable[str]) -> None:
        names = ", ".join(sorted(options))
        super().__init__(
            f"{handler} is already offloaded with another {names}: these belong to its one Celery task, "
            f"so give the same on every event, or a second name="
        )


class DuplicateHandler(DeclarationError):
    """Two different offloaded functions have the same task name."""

    def __init__(self, handler: str, first: str, second: str) -> None:
        super().__init__(f"two offloaded handlers are named {handler}: {first} and {second}; give one of them name=")


class NotOffloadable(DeclarationError):
    """A callable was offloaded that a worker could not import by its name."""

    def __init__(self, handler: str, reason: str, remedy: str) -> None:
        super().__init__(f"{handler} cannot be offloaded: {reason}; {remedy}")


class NotAccepted(DeclarationError):
    """The `accept_content` of a worker lacks JSON, so the worker would refuse the messages of handlers."""

    def __init__(self, app: str, accepted: Iterable[str], handlers: Sequence[str]) -> None:
        super().__init__(
            f"accept_content of the app {app!r} is {', '.join(accepted)}, and the messages of {', '.join(handlers)} "
            f"are JSON: add 'json' to it, or leave their queues to other workers with -Q"
        )


class NoDispatcher(DeclarationError):
    """Nothing can be offloaded, because no installed distribution provides a dispatcher, or several do.

    Args:
        group: the group of entry points in which a distribution names its dispatcher.
        distributions: the distributions with such an entry point, each with the value of its entry point.
    """

    def __init__(self, group: str, distributions: Sequence[str]) -> None:
        if distributions:
            reason = f"several installed distributions have an entry point in {group!r}: {', '.join(distributions)}"
            remedy = "uninstall all but one"
        else:
            reason = f"no installed distribution has an entry point in {group!r}"
            remedy = "install nitro-celery (source code that is only on the path has none: `pip install -e` it)"
        super().__init__(f"nothing can be offloaded, because {reason}; {remedy}")


class DatabaseRefused(DeclarationError):
    """`bind` was given a database that Nitro cannot use."""

    def __init__(self, database: str, reason: str) -> None:
        super().__init__(
            f"bind cannot use {database}: {reason}; give an Engine or AsyncEngine of SQLAlchemy, or a URL, "
            f"for SQLite or PostgreSQL"
        )


class EmitError(NitroError, TypeError):
    """`emit` was called in a way that cannot work."""


class ContextNotSerializable(EmitError):
    """The value of a propagated context variable cannot be part of a message."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"the context variable {name!r} cannot be sent: {reason}")


class PayloadError(NitroError, TypeError):
    """A value cannot be sent to a worker; nothing was published.

    Args:
        argument: path to the value, such as `sender` or `kwargs['items'][2]`.
        kind: name of the value's type.
        why: the reason, and the remedy.
        handlers: names of the offloaded handlers of the emission.
    """

    def __init__(self, argument: str, kind: str, why: str, handlers: Sequence[str] = ()) -> None:
        self.argument, self.kind, self.why = argument, kind, why
        receiver = f" for {', '.join(handlers)}" if handlers else ""
        super().__init__(f"{argument} ({kind}) cannot be sent to a worker{receiver}: {why}")


class PayloadUnreadable(NitroError, ValueError):
    """A worker cannot decode a payload: it has another version, names a class that is not loaded, or is damaged."""


class SignatureRefused(PayloadUnreadable):
    """A message lacks the signature that `NITRO_SIGNING_KEY` demands; it is not retried."""

    def __init__(self, handler: str) -> None:
        super().__init__(f"a message for {handler} without the right signature, which NITRO_SIGNING_KEY demands")


class WrongThread(NitroError, RuntimeError):
    """A blocking wait was called on the thread of the event loop that it would wait for."""

    def __init__(self, call: str, instead: str) -> None:
        super().__init__(f"{call} would block the running event loop for ever; use {instead} there")


class TransactionError(NitroError, RuntimeError):
    """`transaction()` was used in a way that cannot work."""


class OpenElsewhere(TransactionError):
    """A write, or an emit that waits for a commit, ran on a thread that the open `transaction()` does not belong to."""

    def __init__(self) -> None:
        super().__init__(
            "the `transaction()` that is open here belongs to another thread (or to the parent process), and nothing "
            "can be written or emitted in it from this one: open a `with transaction():` of its own in the function "
            "that runs on this thread, such as a `def` endpoint, or make that function `async def`"
        )


class LeftElsewhere(TransactionError):
    """A `transaction()` block was left in another process, thread or context than it was entered in.

    Args:
        place: the kind that differs: `process`, `thread` or `context`.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        result = "its parent process decides about it" if place == "process" else "it was rolled back"
        super().__init__(
            f"a `transaction()` block was left in another {place} than it was entered, so {result}; what the code in "
            f"between has committed by itself stays: enter and leave a block in one function on one thread, or in an "
            f"`async def` dependency or fixture"
        )


class DispatchError(NitroError, RuntimeError):
    """Offloaded handlers could not be published; the message names each of them."""

    def __init__(self, event: str, handlers: Sequence[str], cause: BaseException) -> None:
        self.handlers = tuple(handlers)
        super().__init__(f"{event}: not dispatched: {', '.join(handlers)}: {cause}")
