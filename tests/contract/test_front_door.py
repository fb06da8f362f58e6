"""What the package offers at its front door, beyond what works: names, and honest refusals."""

from __future__ import annotations

import pytest

import nitro
from nitro.errors import NotTracked
from nitro.infrastructure.offload import cancel, current_delivery


def test_an_unknown_name_is_an_attribute_error() -> None:
    """Lazy loading does not hide a spelling mistake."""
    with pytest.raises(AttributeError, match="emitt"):
        _ = nitro.emitt


def test_the_names_are_listed() -> None:
    """`dir(nitro)` and completion know what is not loaded yet."""
    assert set(nitro.__all__) <= set(dir(nitro))


@pytest.mark.parametrize("handler", [None, "shop.mail"])
def test_cancelling_what_is_not_tracked_is_an_error(offloading: None, handler: str | None) -> None:
    """Nobody is led to believe that a message in a broker was stopped."""
    with pytest.raises(NotTracked, match="revoke"):
        cancel("01890a5d-ac96-774b-bcce-b302099a8057", handler)


def test_there_is_no_delivery_outside_of_a_worker() -> None:
    """A handler that is just called can tell."""
    assert current_delivery() is None
