"""The command line: `celery -A tasks nitro COMMAND`."""

from nitro.cli.app import nitro

__all__ = ["nitro"]
