"""The codec: turns the arguments of an emission into text and back, equal in type and value.

    encode(sender, args, kwargs) -> ASCII JSON -> decode(text) -> Payload

`scalars` writes values without parts, `shapes` and `entities` write instances of classes, `writer` and
`reader` handle containers. Values of JSON types are written as they are. Any other value becomes an object
with one key, its tag, such as `{"$uuid": "…"}`. Entities are rows of a table at the end of the payload, and
`{"$entity": position}` refers to a row, so that entities may refer to each other in any way.
"""

from __future__ import annotations

from nitro.infrastructure.offload.codec.reader import Payload, decode
from nitro.infrastructure.offload.codec.writer import encode, quick_json

__all__ = ["Payload", "decode", "encode", "quick_json"]
