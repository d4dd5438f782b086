"""Compile loops over numpy arrays with numba, where numpy would need many passes over small arrays.

A kernel is compiled on its first call, for the types of its arguments, and cached beside its source. Importing this
module takes half a second, so modules that open a store in a notebook do not import it.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile `function` without threads and without the GIL.

    No fast-math: the same input gives the same bits on every machine.
    """
    try:
        compiled: Any = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:
        # Neither the folder of the source nor the home directory is writable: each process compiles the kernel again.
        compiled = numba.njit(nogil=True)(function)
    result: Function = compiled
    return result
