"""What has happened before somebody is called: an order whose mail is tried again, and that cannot be shipped."""

import myapp

from nitro import emit

emit(myapp.order_placed, myapp.Order(id="o1", total=42).save())
