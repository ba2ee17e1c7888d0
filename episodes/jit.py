"""The one place where Numba is configured: compiled kernels go to ``config.paths.cache_folder``.

Without Numba, as on a device, kernels run as plain Python, with the same results.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from config.paths import cache_folder

# Set before numba's first import: by default it caches next to the source files.
os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_folder() / "numba"))

try:
    import numba
    from numba.core import event
except ModuleNotFoundError:
    COMPILES = False
else:
    COMPILES = True

    class _Announcement(event.Listener):
        """Logs once that kernels are compiled; Numba sends no event for a cached kernel."""

        def on_start(self, _: Any) -> None:
            event.unregister("numba:compile", self)
            logging.getLogger("phasewatch").warning(
                "compiling kernels, which takes about ten seconds; they are kept in %s",
                os.environ["NUMBA_CACHE_DIR"],
            )

        def on_end(self, _: Any) -> None:
            """Required by Numba."""

    event.register("numba:compile", _Announcement())


def jit(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Compile to machine code, once; IEEE arithmetic is kept (no fastmath): results are exact.

    A kernel may read globals of its own module and of this one, no others: what is compiled is kept
    for the content of both files. Numba alone looks at the time and the size of one.
    """
    if not COMPILES:
        return kernel
    folder = f"{_CACHE}/{_content(kernel.__code__.co_filename)}"
    numba.config.CACHE_DIR = folder  # type: ignore[attr-defined]
    return numba.njit(cache=True, nogil=True)(kernel)


_CACHE = os.environ["NUMBA_CACHE_DIR"]


@cache
def _content(file: str) -> str:
    """A short hash of a file and of this one."""
    return hashlib.sha256(Path(file).read_bytes() + Path(__file__).read_bytes()).hexdigest()[:16]


def inlined(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Compile into the kernels that call it: passing an array costs a reference count."""
    return numba.njit(inline="always")(kernel) if COMPILES else kernel


def rows_at(address, n_rows, n_columns):
    """The float32 rows ``(n_rows, n_columns)`` at an address, for kernels; nothing is copied."""
    values = (ctypes.c_float * (n_rows * n_columns)).from_address(int(address))
    return np.ctypeslib.as_array(values).reshape(n_rows, n_columns)


if COMPILES:
    from numba.core import types
    from numba.extending import intrinsic, overload

    @intrinsic
    def pointer(_typing, address):
        def build(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(types.float32)(address), build

    at_pointer: Any = pointer
    as_array: Any = numba.carray  # type: ignore[attr-defined]

    @overload(rows_at, inline="always")
    def _rows_at(address, n_rows, n_columns):  # noqa: ARG001, their types
        return lambda address, n_rows, n_columns: as_array(at_pointer(address), (n_rows, n_columns))
