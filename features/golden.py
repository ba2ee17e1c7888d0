"""Golden vectors: frozen episodes and the features they gave, replayed to catch silent changes.

Two recorded episodes: one with a coarse netflow clock and no guest rows, one with a gap, in which
``new_flows`` was changed by hand so that no two channels coincide. The digest of the committed
file is part of every contract. Rewrite it (``python -m features.golden``) only together with
``contract.PREPROCESSING_VERSION`` or the registry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from episodes.format import ARCHIVE_SUFFIX
from episodes.reading import read_episode
from features.contract import GOLDEN_FILE
from features.extraction import extract
from features.registry import LAYOUT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from features.extraction import Extracted
    from features.registry import Layout

RELATIVE_TOLERANCE = 1e-5


def replay(layout: Layout = LAYOUT) -> dict[str, Extracted]:
    """Extract every golden episode, by id."""
    extracted = {}
    for path in sorted(GOLDEN_FILE.parent.glob(f"*{ARCHIVE_SUFFIX}")):
        episode_id = path.name.removesuffix(ARCHIVE_SUFFIX)
        extracted[episode_id] = extract(read_episode(path, episode_id, layout.fields), layout)
    return extracted


def differences(layout: Layout = LAYOUT) -> list[str]:
    """What a replay gives otherwise than the committed file says; empty: nothing.

    Values are compared within 1e-5 of the larger of the value and the feature's RMS, because
    processors differ in the last bits; missing values and labels exactly.
    """
    lines: list[str] = []
    replayed = replay(layout)
    with np.load(GOLDEN_FILE, allow_pickle=False) as golden:
        expected_ids = {name.partition(".")[0] for name in golden.files}
        lines += [f"{gone}: the golden episode is gone" for gone in expected_ids - replayed.keys()]
        lines += [f"{new}: not in {GOLDEN_FILE.name}" for new in replayed.keys() - expected_ids]
        for episode_id in sorted(expected_ids & replayed.keys()):
            got = replayed[episode_id]
            expected = golden[f"{episode_id}.features"]
            if expected.shape != got.features.shape:
                lines.append(f"{episode_id}: features {got.features.shape}, were {expected.shape}")
                continue
            if not np.array_equal(golden[f"{episode_id}.labels"], got.windows.label):
                lines.append(f"{episode_id}: labels differ")
            for name, column, reference in zip(
                layout.feature_names, got.features.T, expected.T, strict=True
            ):
                if not close(column, reference):
                    lines.append(f"{episode_id}: {name} differs")
    return lines


def close(values: NDArray[np.float32], reference: NDArray[np.float32]) -> bool:
    """Equal missing values, and the rest within tolerance of the reference's own scale."""
    if not np.array_equal(np.isnan(values), np.isnan(reference)):
        return False
    there = reference[~np.isnan(reference)].astype(np.float64)
    if not len(there):
        return True
    scale = np.maximum(np.abs(there), np.sqrt(np.mean(there**2)))
    error = np.abs(values[~np.isnan(values)].astype(np.float64) - there)
    return bool(np.all(error <= RELATIVE_TOLERANCE * scale))


def _write() -> None:
    arrays: dict[str, NDArray] = {}
    for episode_id, extracted in replay().items():
        arrays[f"{episode_id}.features"] = extracted.features
        arrays[f"{episode_id}.labels"] = extracted.windows.label
    np.savez_compressed(GOLDEN_FILE, **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    _write()
