"""Facades for tests: the outbox, the broker and the process in plain words, so that a test names no internals."""
