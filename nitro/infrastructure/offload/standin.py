"""TaskStandIn: the `.task` of an offloaded function."""

from __future__ import annotations

from typing import Any

from nitro.infrastructure.offload.app import current_app


class TaskStandIn:
    """The Celery task of a handler, looked up in the current app whenever it is used."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return getattr(current_app().tasks[self.name], attribute)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the handler here, as calling a Celery task does."""
        return current_app().tasks[self.name](*args, **kwargs)

    def __repr__(self) -> str:
        return f"<task of handler {self.name}>"
