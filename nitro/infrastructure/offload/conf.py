"""Fast reads of a Celery app's settings.

Celery's `ConfigurationView` raises and catches a KeyError for each mapping that lacks a name; these functions do not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from celery import Celery
from celery.utils.collections import ConfigurationView


def read_setting(app: Celery, name: str) -> Any:
    """Returns `app.conf[name]`; fast enough to be called for each message."""
    conf = app.conf
    if isinstance(conf, ConfigurationView) and conf.key_t is None:
        keys = _setting_keys((name,), conf.prefix, conf._keys)
        for mapping in conf.maps:
            for key in keys:
                if key in mapping:
                    return mapping[key]
    return conf[name]


def accepts_json(app: Celery) -> bool:
    """Whether `accept_content` lets workers of this app take JSON messages."""
    accepted = app.conf.accept_content
    return accepted is None or not {"json", "application/json"}.isdisjoint(accepted)


def configured_values(app: Celery, names: tuple[str, ...]) -> list[Any]:
    """Returns the values of these settings in each mapping of `app.conf` except Celery's defaults; None for no value.

    A change of any setting changes the list, which takes a fraction of the time that reading the settings takes.
    """
    conf = app.conf
    if not isinstance(conf, ConfigurationView) or conf.key_t is not None:
        return [conf.get(name) for name in names]
    keys = _setting_keys(names, conf.prefix, conf._keys)
    return [mapping.get(key) for mapping in conf.maps[:-1] if mapping for key in keys]


@cache
def _setting_keys(
    names: tuple[str, ...], prefix: str | None, converters: tuple[Callable[[str], str], ...] | None
) -> tuple[str, ...]:
    """Returns the keys under which Celery looks for settings in a mapping."""
    view = ConfigurationView({}, keys=converters, prefix=prefix)
    return tuple(dict.fromkeys(key for name in names for key in view._to_keys(name)))
