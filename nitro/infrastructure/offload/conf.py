"""Settings of a Celery app, read without its `ConfigurationView`, which raises for each mapping that lacks a name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from celery import Celery
from celery.utils.collections import ConfigurationView


def read_setting(app: Celery, name: str) -> Any:
    """`app.conf[name]`, for whoever asks at each message."""
    conf = app.conf
    if isinstance(conf, ConfigurationView) and conf.key_t is None:
        keys = _setting_keys((name,), conf.prefix, conf._keys)
        for mapping in conf.maps:
            for key in keys:
                if key in mapping:
                    return mapping[key]
    return conf[name]


def accepts_json(app: Celery) -> bool:
    """Whether workers of this app take the messages of handlers, by whatever name the app calls JSON."""
    accepted = app.conf.accept_content
    return accepted is None or not {"json", "application/json"}.isdisjoint(accepted)


def configured_values(app: Celery, names: tuple[str, ...]) -> list[Any]:
    """What each mapping of the app's settings but that of Celery's defaults has under these names; None for nothing.

    It tells whether any of them has changed, in a fraction of the time that reading them takes.
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
    """The keys under which settings may be found in a mapping, as Celery looks for them."""
    view = ConfigurationView({}, keys=converters, prefix=prefix)
    return tuple(dict.fromkeys(key for name in names for key in view._to_keys(name)))
