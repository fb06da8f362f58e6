"""The rows of the table; importing this package registers all of them."""

from benchmarks.rows import floors, inline, loop, other_libraries, publishing, tracked, working

__all__ = ["floors", "inline", "loop", "other_libraries", "publishing", "tracked", "working"]
