"""The publishing of task messages to the broker."""
