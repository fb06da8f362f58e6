"""The payload of an emission as text: what a worker needs to call a handler with equal arguments.

    encode(sender, args, kwargs) -> ASCII JSON -> decode(text) -> Payload

A value without parts is written by `scalars`, a class with a state by its shape (`shapes`,
`entities`), and containers by `writer` and `reader`. What JSON knows is written plainly; the rest is
an object whose one key is a tag, such as `{"$uuid": "…"}`. Entities stand in a table of their own and
are pointed at by `{"$entity": position}`, so that they may refer to each other in any way.
"""

from __future__ import annotations

from nitro.infrastructure.offload.codec.reader import Payload, decode
from nitro.infrastructure.offload.codec.writer import encode, quick_json

__all__ = ["Payload", "decode", "encode", "quick_json"]
