"""Loops over numpy arrays compiled by numba: for what would take a dozen passes of numpy over small arrays.

Compiled on the first call, for the types it was called with, and kept beside the source for the next process. Importing
this takes half a second, so nothing that a notebook needs to open a store does.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """`function` compiled, without threads and without Python's lock.

    No fast-math: the same input gives the same bits on every machine.
    """
    try:
        compiled: Any = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:
        # Neither the source's folder nor the home directory can be written: compiled anew by each process.
        compiled = numba.njit(nogil=True)(function)
    result: Function = compiled
    return result
