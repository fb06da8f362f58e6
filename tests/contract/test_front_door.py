"""Top-level names of the package: unknown and lazy names, and errors of misuse."""

from __future__ import annotations

import pytest

import nitro
from nitro.errors import NotTracked
from nitro.infrastructure.offload import cancel, current_delivery


def test_an_unknown_name_is_an_attribute_error() -> None:
    """An unknown name raises AttributeError in spite of lazy loading."""
    with pytest.raises(AttributeError, match="emitt"):
        _ = nitro.emitt


def test_the_names_are_listed() -> None:
    """`dir(nitro)` lists names that are not loaded yet."""
    assert set(nitro.__all__) <= set(dir(nitro))


@pytest.mark.parametrize("handler", [None, "shop.mail"])
def test_cancelling_what_is_not_tracked_is_an_error(offloading: None, handler: str | None) -> None:
    """Cancelling an untracked delivery raises and names Celery's `revoke`."""
    with pytest.raises(NotTracked, match="revoke"):
        cancel("01890a5d-ac96-774b-bcce-b302099a8057", handler)


def test_there_is_no_delivery_outside_of_a_worker() -> None:
    """`current_delivery()` is None in a handler that is called directly."""
    assert current_delivery() is None
