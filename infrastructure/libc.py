"""Functions of the C library that Python has no name for."""

from __future__ import annotations

import ctypes
from collections.abc import Callable


def c_function(name: str, *arguments: type[ctypes._SimpleCData[int]]) -> Callable[..., int] | None:
    """It answers an int, and leaves its error to `ctypes.get_errno`; None where there is none."""
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes, function.restype = arguments, ctypes.c_int
    found: Callable[..., int] = function
    return found
