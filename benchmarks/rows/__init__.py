"""All rows of the table; importing this puts them there."""

from benchmarks.rows import floors, inline, loop, publishing, rivals, tracked, working

__all__ = ["floors", "inline", "loop", "publishing", "rivals", "tracked", "working"]
