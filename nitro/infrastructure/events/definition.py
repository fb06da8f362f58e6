"""Definitions of handlers: a definition that runs again (reload, notebook cell) is told from a second handler."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import unwrap
from types import CodeType, FrameType, FunctionType
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """The source position of the innermost function of a handler, at the time of its connection.

    Attributes:
        function_id: `id()` of the function, which is not kept alive.
        enclosing_code: code of the module or notebook cell that was running; None when it had ended.
    """

    function_id: int
    qualname: str
    code: CodeType
    module_globals: dict[str, Any]
    enclosing_code: CodeType | None

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Definition | None:
        """Returns the definition of a callable that is being connected, or None if it is not written in Python."""
        innermost = innermost_function(function)
        if not isinstance(innermost, FunctionType):
            return None
        code, module = innermost.__code__, innermost.__globals__
        frames = _defining_frames(code, module)
        enclosing_code = frames[-1].f_code if frames else None
        return cls(
            function_id=id(innermost),
            qualname=innermost.__qualname__,
            code=code,
            module_globals=module,
            enclosing_code=enclosing_code,
        )

    def shares_code_with(self, old: Definition) -> bool:
        """Whether both are different functions with the same code, as two calls of a factory make them."""
        return self.code is old.code and self.function_id != old.function_id

    def has_same_origin_as(self, old: Definition) -> bool:
        """Whether both are the same function, or functions of one factory."""
        return self.function_id == old.function_id or (self.code is old.code and self._is_nested)

    @property
    def _is_nested(self) -> bool:
        return "<locals>" in self.qualname

    def redefines(self, old: Definition) -> bool:
        """Whether the definition of `old` has run again: by a reload, in a cell, or in a script that is also imported.

        Functions that one run of the source makes never replace each other: equal names, loops, factories.
        """
        if self.qualname != old.qualname or self.has_same_origin_as(old):
            return False
        if self.code is old.code:
            return not _may_run_again(self.code, self.module_globals)
        if self.enclosing_code is not None and self.enclosing_code is old.enclosing_code:
            return False
        return self._is_in_same_source_as(old) and (
            self.code.co_firstlineno == old.code.co_firstlineno or self._has_moved(old)
        )

    def _is_in_same_source_as(self, old: Definition) -> bool:
        """Whether both are in one file, or in one interactive session, where each cell counts as a file."""
        if self.module_globals is old.module_globals and _is_interactive(self.module_globals):
            return True
        file = _source_file(self.code)
        return file == _source_file(old.code) and (
            self.module_globals is old.module_globals or not file.startswith("<")
        )

    def _has_moved(self, old: Definition) -> bool:
        """Whether the line differs because the source was edited, and not because the source has two such functions."""
        if self.enclosing_code is None or old.enclosing_code is None:
            return not any(id(value) == old.function_id for value in old.module_globals.values())
        if self._is_nested and not self.enclosing_code.co_name == old.enclosing_code.co_name == "<module>":
            return False
        same_cell = _is_interactive(self.module_globals) and self.code.co_filename == old.code.co_filename
        return not (same_cell and _is_still_in_source(old))  # IPython compiles each statement of a cell separately


def innermost_function(function: Any) -> Any:
    """Returns the function beneath decorators, partials, methods and `__call__`."""
    while not isinstance(function, FunctionType):
        if isinstance(function, partial):
            function = function.func
        elif hasattr(function, "__func__"):
            function = function.__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            break
    if isinstance(function, FunctionType):
        return unwrap(function)
    called: Any = type(function).__call__
    return called if isinstance(called, FunctionType) else function


def _defining_frames(code: CodeType, module: dict[str, Any]) -> list[FrameType]:
    """Returns the running frames whose source contains a code, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    frames: list[FrameType] = []
    while frame is not None:
        if frame.f_globals is module and any(const is code for const in frame.f_code.co_consts):
            frames.append(frame)
            code = frame.f_code
        frame = frame.f_back
    return frames


def _may_run_again(code: CodeType, module: dict[str, Any]) -> bool:
    """Whether a running frame may execute this definition again before it ends."""
    return any(_is_inside_loop(frame.f_code, frame.f_lasti) for frame in _defining_frames(code, module))


def _is_inside_loop(code: CodeType, offset: int) -> bool:
    import dis

    jumps = (step for step in dis.get_instructions(code) if "JUMP_BACKWARD" in step.opname)
    return any(jump.argval <= offset < jump.offset for jump in jumps)


def _is_interactive(module: dict[str, Any]) -> bool:
    return module.get("__name__") == "__main__" and "__file__" not in module


def _source_file(code: CodeType) -> str:
    return code.co_filename if code.co_filename.startswith("<") else os.path.realpath(code.co_filename)


def _is_still_in_source(old: Definition) -> bool:
    """Whether `linecache` still shows the old function on its line."""
    lines = linecache.getlines(old.code.co_filename)[old.code.co_firstlineno - 1 :]
    head = next((line for line in lines if "def " in line), "")
    return f"def {old.qualname.rpartition('.')[2]}" in head
