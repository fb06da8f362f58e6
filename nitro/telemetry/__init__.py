"""Telemetry: what other tools are told. Each module is called once, at start, by emitters and by workers alike."""

from nitro.telemetry.context import carry

__all__ = ["carry"]
