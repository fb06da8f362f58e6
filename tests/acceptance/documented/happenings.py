"""Emits an order whose mail is retried and that cannot be shipped, for the page about being on call."""

import myapp

from nitro import emit

emit(myapp.order_placed, myapp.Order(id="o1", total=42).save())
