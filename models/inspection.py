"""Checkpoints looked at without being used: what there is, and whether it is what it was.

The inventory reads headers only. Verification loads, and replays the golden vectors through the
code as it is. How either is shown is not known here.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from features import golden
from features.contract import GOLDEN_FILE, golden_digest
from models.checkpoint import (
    SUFFIX,
    CheckpointError,
    ContractMismatchError,
    check_contract,
    golden_probabilities,
    load_checkpoint,
    read_header,
)

if TYPE_CHECKING:
    from pathlib import Path

    from features.registry import Layout

PROBABILITY_TOLERANCE = 1e-4
"""Sums in another order move a probability by about 1e-6; two channels swapped move one by 6e-3
at the least (measured on the golden vectors, convolutions and trees)."""


@dataclass(frozen=True)
class Entry:
    """One checkpoint of an inventory. What a broken header does not tell is None."""

    path: Path
    header: dict[str, Any] | None
    broken: str | None  # why it could not be loaded under any layout
    differences: list[str]  # to the live contract, or of the golden replay

    @property
    def usable(self) -> bool:
        return self.broken is None and not self.differences

    def as_row(self) -> dict[str, Any]:
        """Plain values, the same keys for every entry."""
        header = self.header or {}
        meta = header.get("train_meta", {})
        return {
            "path": str(self.path),
            "model": header.get("name"),
            "mode": header.get("mode"),
            "recipe": meta.get("recipe"),
            "val_macro_f1": meta.get("val_macro_f1"),
            "dataset_version": meta.get("dataset_version"),
            "contract_hash": header.get("contract_hash"),
            "schema_hash": header.get("schema_hash"),
            "checkpoint_id": header.get("artifact_id"),
            "bytes": header.get("sidecar_bytes"),
            "code_commit": meta.get("code_commit"),
            "usable": self.usable,
            "broken": self.broken,
            "differences": self.differences,
        }


def find_checkpoints(path: Path) -> list[Path]:
    """The headers at a path: itself, or every one in a folder, however deep."""
    return sorted(path.rglob(f"*{SUFFIX}")) if path.is_dir() else [path]


def inspect(path: Path, layout: Layout) -> Entry:
    """What a header says, and whether it would load; of the sidecar only the size is looked at."""
    header = None
    try:
        header = read_header(path)
        _look_for_sidecar(path.parent / header["sidecar"], header["sidecar_bytes"])
        check_contract(header, layout, str(path))
    except ContractMismatchError as error:
        return Entry(path, header, None, error.differences)
    except CheckpointError as error:
        return Entry(path, header, str(error), [])
    return Entry(path, header, None, [])


def _look_for_sidecar(path: Path, n_bytes: int) -> None:
    try:
        status = path.lstat()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; retrain") from None
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: not a regular file")
    if status.st_size != n_bytes:
        raise CheckpointError(
            f"{path}: {status.st_size:,} bytes, the header says {n_bytes:,}; restore the file or "
            "retrain"
        )


def verify(path: Path, layout: Layout, replayed: list[str] | None = None) -> Entry:
    """Load a checkpoint and replay the golden episodes; every difference is a line.

    Extraction is replayed and compared with the committed vectors, and these are scored and
    compared with what the header says. Scoring what was just extracted instead would tell
    processors apart: trees split on values of the training set, so that a last bit can move a
    probability by a tenth.

    Args:
        replayed: ``features.golden.differences(layout)``, where many checkpoints are verified.
    """
    entry = inspect(path, layout)
    if not entry.usable:
        return entry
    try:
        loaded = load_checkpoint(path, layout)
        stored = _stored_probabilities(path, loaded.header["golden"])
    except ContractMismatchError as error:
        return Entry(path, entry.header, None, error.differences)
    except CheckpointError as error:
        return Entry(path, entry.header, str(error), [])
    lines = golden.differences(layout) if replayed is None else list(replayed)
    if loaded.header["golden"]["sha256"] != golden_digest():
        lines.append("the header's probabilities are of another golden file; retrain")
    elif stored is None:
        lines.append(
            f"no golden probabilities: {GOLDEN_FILE.name} was of another layout when it was "
            f"trained; {golden.REWRITE}, then retrain"
        )
    elif scored := golden_probabilities(loaded, layout):
        lines += _probability_differences(stored, scored, layout)
    return Entry(path, loaded.header, None, lines)


def _stored_probabilities(path: Path, stored: dict[str, Any]) -> dict[str, Any] | None:
    try:
        if stored["proba"] is None:
            return None
        return {i: np.array(rows, dtype=np.float64) for i, rows in stored["proba"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: golden is malformed: {error!r}; retrain") from error


def _probability_differences(was: dict[str, Any], now: dict[str, Any], layout: Layout) -> list[str]:
    lines = [f"{extra}: scored on one side only" for extra in sorted(was.keys() ^ now.keys())]
    for episode_id in sorted(was.keys() & now.keys()):
        before, after = was[episode_id], np.array(now[episode_id])
        if before.shape != after.shape:
            lines.append(f"{episode_id}: probabilities {after.shape}, were {before.shape}")
            continue
        off = ~(np.abs(after - before) <= PROBABILITY_TOLERANCE)
        lines += [
            f"{episode_id}: window {w}: probability of {layout.phases[c]} was {before[w, c]:.6f}, "
            f"is {after[w, c]:.6f} ({after[w, c] - before[w, c]:+.2g})"
            for w, c in np.argwhere(off)
        ]
    return lines
