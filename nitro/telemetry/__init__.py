"""Telemetry for other tools. Emitters and workers call a module's `instrument` (or `carry`) once, at start."""

from nitro.telemetry.context import carry

__all__ = ["carry"]
