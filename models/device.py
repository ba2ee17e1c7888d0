"""Which processor trains."""

from __future__ import annotations

import logging
from typing import Literal

log = logging.getLogger("phasewatch")


def pick_device(name: str, *, useful: bool = True) -> Literal["cpu", "cuda"]:
    """``auto`` falls back to the CPU with a warning; an explicit ``cuda`` has to be there.

    Args:
        useful: whether whoever asks could use CUDA at all; else it is the CPU, without a word.

    Raises:
        ValueError: ``name`` is none of auto, cpu and cuda.
        RuntimeError: ``cuda`` was asked for and is not available.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is {name!r}; it can be auto, cpu or cuda")
    if name == "cpu" or not useful:
        return "cpu"
    import torch  # heavy, and not needed where the answer is known

    if torch.cuda.is_available():
        return "cuda"
    if name == "cuda":
        raise RuntimeError("device is cuda, but no CUDA device is available; use auto or cpu")
    log.warning("no CUDA device: training on the CPU")
    return "cpu"
