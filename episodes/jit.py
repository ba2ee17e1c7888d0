"""The one place where Numba is configured: compiled kernels go to ``config.paths.cache_folder``.

Without Numba, as on a device, kernels run as plain Python, with the same results.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

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
                "compiling kernels, which takes about a minute; they are kept in %s",
                os.environ["NUMBA_CACHE_DIR"],
            )

        def on_end(self, _: Any) -> None:
            """Required by Numba."""

    event.register("numba:compile", _Announcement())


def jit(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Compile to machine code, once; IEEE arithmetic is kept (no fastmath): results are exact."""
    return numba.njit(cache=True, nogil=True)(kernel) if COMPILES else kernel


def inlined(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Compile into the kernels that call it: passing an array costs a reference count."""
    return numba.njit(inline="always")(kernel) if COMPILES else kernel
