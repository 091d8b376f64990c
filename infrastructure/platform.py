"""Functions of the C library."""

from __future__ import annotations

import ctypes
from collections.abc import Callable


def libc_function(
    name: str, *arguments: type[ctypes._SimpleCData[int]]
) -> Callable[..., int] | None:
    """Return a function of the C library, None if it has none of this name.

    The function returns an int, and its error is `ctypes.get_errno()`.
    """
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes, function.restype = arguments, ctypes.c_int
    found: Callable[..., int] = function
    return found
