"""Explanations of an emit: its handlers and the results of their conditions, without a call of a handler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nitro.infrastructure.events.emission import Emission
from nitro.infrastructure.events.handler import FunctionKind, Handler
from nitro.infrastructure.events.plan import Plan
from nitro.infrastructure.events.ports import Call, dispatcher
from nitro.infrastructure.events.run import check_condition


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerExplanation:
    """The explanation of one handler of an emit.

    Attributes:
        handler: name of the handler.
        where: `inline` for a handler that runs in the emitter, `queue` for one that runs in a worker.
        condition: None without a condition, `holds`, or the reason why the handler would be skipped.
        delivery: the delivery option of a queued handler.
        payload_size: bytes of the JSON payload of a queued handler that is not skipped.
    """

    handler: str
    where: Literal["inline", "queue"]
    kind: FunctionKind
    priority: int
    condition: str | None
    delivery: str | None = None
    payload_size: int | None = None

    @property
    def runs(self) -> bool:
        """Whether the condition lets the handler run."""
        return _may_run(self.condition)

    def __str__(self) -> str:
        parts = [self.where, self.handler, self.kind, f"priority {self.priority}"]
        parts += [self.condition] if self.condition else []
        parts += [self.delivery] if self.delivery else []
        parts += [f"{self.payload_size} bytes"] if self.payload_size is not None else []
        return "  ".join(parts)


class Explanation(list[HandlerExplanation]):
    """The explanations of an event's handlers, in the order of an emit; printed with one line each."""

    __slots__ = ("event",)

    def __init__(self, event: str) -> None:
        super().__init__()
        self.event = event

    def __str__(self) -> str:
        return "\n".join([self.event, *(f"  {position}. {row}" for position, row in enumerate(self, 1))])


def explain(event: str, plan: Plan, call: Call) -> Explanation:
    """Calls the conditions and measures the payload, without a call of a handler.

    Raises:
        PayloadError: an argument cannot be sent to a worker.
    """
    explanation = Explanation(event)
    emission = Emission.of(event)
    conditions = {handler: _condition_result(handler, emission, call) for handler in plan.handlers}
    queued = [handler for handler in plan.offloaded if _may_run(conditions[handler])]
    sizes = dict(zip(queued, dispatcher().payload_sizes(call, queued) if queued else [], strict=True))
    for handler in plan.handlers:
        explanation.append(
            HandlerExplanation(
                handler=handler.name,
                where="inline" if handler.offload is None else "queue",
                kind=handler.kind,
                priority=handler.priority,
                condition=conditions[handler],
                delivery=None if handler.offload is None else handler.offload.delivery,
                payload_size=sizes.get(handler),
            )
        )
    return explanation


def _may_run(condition: str | None) -> bool:
    return condition in (None, "holds")


def _condition_result(handler: Handler, emission: Emission, call: Call) -> str | None:
    if handler.condition is None:
        return None
    return "holds" if check_condition(handler, emission, call) else emission.skipped[handler.name]
