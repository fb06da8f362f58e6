"""The outbox: a row for each tracked delivery, committed with the user's data and closed when its handler ends."""
