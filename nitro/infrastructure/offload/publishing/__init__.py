"""Publishing: from task messages to the broker."""
