"""The one place where Numba is configured: compiled kernels are cached under ``artifacts/``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Set before numba's first import: nothing outside artifacts/ is written.
os.environ.setdefault(
    "NUMBA_CACHE_DIR", str(Path(__file__).resolve().parent.parent / "artifacts" / "cache" / "numba")
)

import numba


def jit(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Compile to machine code, once; IEEE arithmetic is kept (no fastmath): results are exact."""
    return numba.njit(cache=True, nogil=True)(kernel)


def inlined(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Compile into the kernels that call it: an array passed on is counted, which costs."""
    return numba.njit(inline="always")(kernel)
