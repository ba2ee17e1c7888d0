"""The one place where Numba is configured: compiled kernels go to ``config.paths.cache_folder``.

Without Numba, as on a device, kernels run as plain Python, with the same results.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
from collections.abc import Callable
from functools import cache, update_wrapper
from importlib.util import find_spec
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from config.paths import cache_folder

# Set before numba's first import: by default it caches next to the source files.
os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_folder() / "numba"))

COMPILES = find_spec("numba") is not None
_CACHE = os.environ["NUMBA_CACHE_DIR"]
_LOCK = RLock()
_waiting: dict[str, list[Kernel]] = {}  # kernels that were not compiled yet, by their file


class Kernel:
    """A function that is compiled when it is first called, with the others of its file.

    Numba takes half a second to import, and most commands call no kernel. Once compiled, a kernel
    takes this object's place in its module.
    """

    def __init__(self, plain: Callable[..., Any], **options: Any):
        update_wrapper(self, plain)
        self._plain, self._options = plain, options
        self._compiled: Callable[..., Any] | None = None
        _waiting.setdefault(plain.__code__.co_filename, []).append(self)

    def __call__(self, *given: Any) -> Any:
        if self._compiled is None:
            with _LOCK:
                for kernel in _waiting.get(self._plain.__code__.co_filename, ()):
                    kernel._compile()
                _waiting.pop(self._plain.__code__.co_filename, None)
        assert self._compiled is not None
        return self._compiled(*given)

    def _compile(self) -> None:
        numba, plain = _numba(), self._plain
        numba.config.CACHE_DIR = f"{_CACHE}/{_content(plain.__code__.co_filename)}"
        self._compiled = plain.__globals__[plain.__name__] = numba.njit(**self._options)(plain)


def jit(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Compile to machine code, once; IEEE arithmetic is kept (no fastmath): results are exact.

    A kernel may read globals of its own module and of this one, no others: what is compiled is kept
    for the content of both files. Numba alone looks at the time and the size of one.
    """
    return Kernel(plain, cache=True, nogil=True) if COMPILES else plain


def inlined(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Compile into the kernels that call it: passing an array costs a reference count."""
    return Kernel(plain, inline="always") if COMPILES else plain


@cache
def _content(file: str) -> str:
    """A short hash of a file and of this one."""
    return hashlib.sha256(Path(file).read_bytes() + Path(__file__).read_bytes()).hexdigest()[:16]


def rows_at(address, n_rows, n_columns):
    """The float32 rows ``(n_rows, n_columns)`` at an address, for kernels; nothing is copied."""
    values = (ctypes.c_float * (n_rows * n_columns)).from_address(int(address))
    return np.ctypeslib.as_array(values).reshape(n_rows, n_columns)


@cache
def _numba() -> Any:
    """Numba, with what kernels need of it."""
    import numba
    from numba.core import event, types
    from numba.extending import intrinsic, overload

    class Announcement(event.Listener):
        """Logs once that kernels are compiled; Numba sends no event for a cached kernel."""

        def on_start(self, _: Any) -> None:
            event.unregister("numba:compile", self)
            logging.getLogger("phasewatch").warning(
                "compiling kernels, which takes about ten seconds; they are kept in %s",
                os.environ["NUMBA_CACHE_DIR"],
            )

        def on_end(self, _: Any) -> None:
            """Required by Numba."""

    event.register("numba:compile", Announcement())

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

    return numba
