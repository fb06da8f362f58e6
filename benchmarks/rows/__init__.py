"""All rows of the table; importing this puts them there."""

from benchmarks.rows import inline, loop, publishing, rivals, tracked, working

__all__ = ["inline", "loop", "publishing", "rivals", "tracked", "working"]
