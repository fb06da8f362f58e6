"""JSON Schemas (2020-12) of the commands' `--json` output."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number", "minimum": 0}
COUNT: Schema = {"type": "integer", "minimum": 0}
TRUTH: Schema = {"type": "boolean"}
MOMENT: Schema = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00$"}
ID: Schema = {"type": "string", "pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"}
STATE: Schema = {"enum": ["waiting", "queued", "running", "done", "published", "dead", "cancelled"]}
PROMISE: Schema = {"enum": ["at-most-once", "broker", "at-least-once", "exactly-once"]}


def maybe(schema: Schema) -> Schema:
    """Returns the schema of a value or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def array(items: Schema) -> Schema:
    """Returns the schema of an array of items."""
    return {"type": "array", "items": items}


def exactly(**properties: Schema) -> Schema:
    """Returns the schema of an object with all of these properties and no others."""
    return {**some(**properties), "required": list(properties)}


def some(**properties: Schema) -> Schema:
    """Returns the schema of an object with no other properties than these."""
    return {"type": "object", "properties": properties, "additionalProperties": False}


HANDLERS = array(
    exactly(
        event=TEXT,
        position=COUNT,
        where={"enum": ["inline", "queue"]},
        handler=TEXT,
        kind={"enum": ["sync", "generator", "async", "async generator"]},
        priority={"type": "integer"},
        sender=maybe(TEXT),
        condition=TRUTH,
        delivery=maybe(PROMISE),
        options={"type": "object"},
    )
)

VERDICTS = array(
    exactly(
        handler=TEXT,
        where={"enum": ["inline", "queue"]},
        kind=TEXT,
        priority={"type": "integer"},
        condition=maybe(TEXT),
        delivery=maybe(PROMISE),
        payload_size=maybe(COUNT),
        runs=TRUTH,
    )
)

FINDINGS = array(exactly(verdict={"enum": ["fine", "warning", "wrong"]}, check=TEXT, found=TEXT))

ENTRY = exactly(
    id=ID,
    emission=ID,
    handler=TEXT,
    event=maybe(TEXT),
    sender=TEXT,
    state=STATE,
    promise=PROMISE,
    queue=TEXT,
    attempts=COUNT,
    retries=COUNT,
    losses=COUNT,
    publications=COUNT,
    due=maybe(MOMENT),
    published=maybe(MOMENT),
    started=maybe(MOMENT),
    closed=maybe(MOMENT),
    replayed=maybe(MOMENT),
    worker=maybe(TEXT),
    error=maybe(TEXT),
    history=array(
        exactly(run=COUNT, started=maybe(MOMENT), ended=MOMENT, why=TEXT, outcome={"enum": ["retried", "dead"]})
    ),
)
ENTRIES = array(ENTRY)
SHOWN = array(
    {
        **ENTRY,
        "properties": {**ENTRY["properties"], "payload": maybe({"type": "object"})},
        "required": [*ENTRY["required"], "payload"],
    }
)

TURN = {
    **some(
        handler=TEXT,
        outcome={"enum": ["done", "started", "failed", "raised", "cancelled", "skipped", "queued", "dropped"]},
        at=NUMBER,
        took=NUMBER,
        why=TEXT,
        id=ID,
        delivery=PROMISE,
    ),
    "required": ["handler", "outcome"],
}
TREES = {
    "$defs": {
        "emission": exactly(
            id=ID,
            event=maybe(TEXT),
            sender=TEXT,
            root=maybe(ID),
            parent=maybe(ID),
            at=MOMENT,
            took=maybe(NUMBER),
            process=maybe(TEXT),
            caused_in=maybe(TEXT),
            error=maybe(TEXT),
            rolled_back=TRUTH,
            turns=array(TURN),
            deliveries=ENTRIES,
            children=array({"$ref": "#/$defs/emission"}),
        )
    },
    **array({"$ref": "#/$defs/emission"}),
}

LINE = exactly(at=MOMENT, state=TEXT, event=maybe(TEXT), sender=TEXT, handler=maybe(TEXT), emission=ID, note=TEXT)

OUTBOX = {
    "type": "object",
    "additionalProperties": exactly(
        boot=ID,
        broker={"enum": ["reached", "away"]},
        relays={"type": "boolean"},
        deliveries=exactly(waiting=COUNT, queued=COUNT, running=COUNT, dead=COUNT),
        oldest_waiting_seconds=maybe(NUMBER),
        stuck=array(
            exactly(handler=TEXT, queue=TEXT, state=STATE, count=COUNT, oldest_seconds=maybe(NUMBER), why=TEXT)
        ),
    ),
}
"""Schema of `celery inspect nitro_outbox`: an object by worker."""
