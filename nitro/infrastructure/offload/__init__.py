"""Offloading: handlers that run as Celery tasks."""

from nitro.infrastructure.offload.app import bind
from nitro.infrastructure.offload.delivery import current_delivery
from nitro.infrastructure.offload.options import Offload
from nitro.infrastructure.offload.ports import cancel

__all__ = ["Offload", "bind", "cancel", "current_delivery"]
