"""An inventory of checkpoints, and their verification.

The inventory reads headers and hashes sidecars. Verification loads each checkpoint and replays the
golden vectors through the code as it is. Printing is done elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from features.registry import Layout
from models.checkpoint import (
    SUFFIX,
    CheckpointError,
    ContractMismatchError,
    MissingLibraryError,
    check_contract,
    load_checkpoint,
    probability_differences,
    read_header,
    read_sidecar,
)
from models.replay import differences


@dataclass(frozen=True)
class InventoryEntry:
    """One checkpoint of an inventory."""

    path: Path
    header: dict[str, Any] | None  # None: broken
    broken: str | None = None  # why it cannot be loaded under any layout
    differences: list[str] = field(default_factory=list)  # from the live contract or the replay
    unverified: str | None = None  # why it could not be verified here

    @property
    def usable(self) -> bool:
        return not (self.broken or self.differences or self.unverified)

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
            "bytes": self.path.stat().st_size + header["sidecar_bytes"] if header else None,
            "code_commit": meta.get("code_commit"),
            "usable": self.usable,
            "broken": self.broken,
            "unverified": self.unverified,
            "differences": self.differences,
        }


def find_checkpoints(path: Path) -> list[Path]:
    """The headers at a path: the file itself, or all in a folder and its subfolders."""
    return sorted(path.rglob(f"*{SUFFIX}")) if path.is_dir() else [path]


def inspect(path: Path, layout: Layout) -> InventoryEntry:
    """Whether a checkpoint would load, by its header, its sidecar's hash and its contract."""
    header = None
    try:
        header = read_header(path)
        read_sidecar(path, header)
        check_contract(header, layout, str(path))
    except ContractMismatchError as error:
        return InventoryEntry(path, header, differences=error.differences)
    except CheckpointError as error:
        return InventoryEntry(path, header, broken=str(error))
    return InventoryEntry(path, header)


def verify(path: Path, layout: Layout, replayed: list[str] | None = None) -> InventoryEntry:
    """Load a checkpoint and replay the golden episodes; one line per difference.

    The episodes are extracted again and compared with the committed vectors; the committed vectors
    are scored and compared with the header's probabilities. Scoring the new extraction instead
    would only tell processors apart: trees split on values of the training set, so a change in the
    last bit can move a probability by a tenth.

    Args:
        replayed: ``models.replay.differences(layout)``, if many checkpoints are verified.
    """
    entry = inspect(path, layout)
    if not entry.usable:
        return entry
    try:
        checkpoint = load_checkpoint(path, layout)
        lines = probability_differences(checkpoint, layout, str(path))
    except ContractMismatchError as error:
        return replace(entry, differences=error.differences)
    except MissingLibraryError as error:
        return replace(entry, unverified=str(error))
    except CheckpointError as error:
        return replace(entry, broken=str(error))
    first = differences(layout) if replayed is None else list(replayed)
    return InventoryEntry(path, checkpoint.header, differences=first + lines)
