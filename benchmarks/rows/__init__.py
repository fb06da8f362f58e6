"""All rows of the table; importing this puts them there."""

from benchmarks.rows import inline, publishing, tracked

__all__ = ["inline", "publishing", "tracked"]
