"""The base class of every error that phasewatch raises; each error is beside what raises it."""

from __future__ import annotations


class PhasewatchError(Exception):
    """Something cannot be done; the message says why and what to do."""
