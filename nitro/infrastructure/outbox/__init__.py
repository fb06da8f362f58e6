"""The outbox: a row for each tracked delivery, committed with the user's data and closed by its handler's end."""
