"""Masking: a payload as an operator may see it: as it travels, without the values of what is named like a secret."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

MASK = "***"
SENSITIVE = re.compile(
    r"pass(word|phrase|wd|code)?$|^pwd$|secret|token|credential|auth(?!or)|api_?key|private_?key|signature|cookie|session"
    r"|card|cvc|cvv|iban|account_?n|^pin$|ssn|tax_?id|e_?mail|phone|mobile|address|birth",
    re.IGNORECASE,
)
"""Names of fields and keyword arguments whose values are not shown; a class adds its own in `__nitro_mask__`."""


def masked(payload: str) -> Any:
    """The payload that the codec wrote, as JSON with masks."""
    return _masked(json.loads(payload), ())


def _masked(value: Any, secret: Collection[str]) -> Any:
    if isinstance(value, list):
        return [_masked(item, secret) for item in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("$dataclass"), list):
        reference, state = value["$dataclass"]
        return {"$dataclass": [reference, _masked(state, _declared(reference))]}
    secret = _declared(value.get("class")) or secret
    hidden = {name for name in value if name in secret or SENSITIVE.search(name)}
    return {name: MASK if name in hidden else _masked(item, secret) for name, item in value.items()}


def _declared(reference: Any) -> Collection[str]:
    """What the class of an entity, a model or a dataclass wants to have masked."""
    from nitro.errors import PayloadUnreadable
    from nitro.infrastructure.offload.codec.references import find_class

    while isinstance(reference, list) and reference:  # of a parametrised class its origin says it
        reference = reference[0]
    if not isinstance(reference, str):
        return ()
    try:
        return tuple(getattr(find_class(reference), "__nitro_mask__", ()))
    except PayloadUnreadable:
        return ()
