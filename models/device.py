"""The processor that trains."""

from __future__ import annotations

import logging
from typing import Literal

log = logging.getLogger("phasewatch")


def pick_device(name: str, *, useful: bool) -> Literal["cpu", "cuda"]:
    """``auto`` falls back to the CPU with a warning; an explicit ``cuda`` must be available.

    Args:
        useful: whether the caller can use CUDA; if not, it gets the CPU without a warning.

    Raises:
        ValueError: ``name`` is not auto, cpu or cuda.
        RuntimeError: ``cuda`` was requested and is not available.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cpu" or not useful:
        return "cpu"
    import torch  # heavy, and not needed above

    if torch.cuda.is_available():
        return "cuda"
    if name == "cuda":
        raise RuntimeError("device cuda is not available; use auto or cpu")
    log.warning("no CUDA device: training on the CPU")
    return "cpu"
