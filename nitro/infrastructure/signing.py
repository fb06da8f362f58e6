"""Signatures of what a message carries: HMAC-SHA256 with the key of `NITRO_SIGNING_KEY` (RFC 2104)."""

from __future__ import annotations

import hmac

from nitro.settings import signing_key


def is_signing() -> bool:
    """Whether messages are signed; then no two handlers share an envelope."""
    return signing_key() is not None


def signature_of(text: str) -> str | None:
    """Returns the signature of a text as hexadecimal digits, or None without a key."""
    key = signing_key()
    return None if key is None else hmac.digest(key.encode(), text.encode(), "sha256").hex()


def is_signed(text: str, signature: object) -> bool:
    """Whether a signature, which a message may give as anything, is that of the text; always true without a key."""
    expected = signature_of(text)
    return expected is None or hmac.compare_digest(expected.encode(), str(signature).encode(errors="replace"))
