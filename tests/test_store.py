"""The embedded store: its verdicts are a golden file, and its golden vectors replay."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from episodes.format import episode_day
from episodes.store import list_store
from episodes.validation import VERDICTS, ValidationPolicy, validate
from features.golden import differences
from features.registry import LAYOUT

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden" / "validation_index.jsonl"


def rounded(value: Any) -> Any:
    """Floats to nine digits: the last bits may differ between processors."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    return [rounded(v) for v in value] if isinstance(value, list) else value


def sweep() -> list[dict[str, Any]]:
    return [
        {
            name: rounded(value)
            for name, value in validate(stored, ValidationPolicy(), LAYOUT.fields)[0]
            .as_row()
            .items()
        }
        for stored in list_store(ROOT / "data" / "store").episodes
    ]


def test_the_embedded_index_is_the_golden_one() -> None:
    golden = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    assert sweep() == golden


def test_every_host_profile_phase_and_verdict_is_in_the_embedded_store() -> None:
    rows = sweep()
    assert {row["verdict"] for row in rows} == set(VERDICTS)
    usable = [row for row in rows if row["verdict"] in ("accepted", "degraded")]
    assert {row["host_id"] for row in usable} == {"lab-a", "lab-b", "lab-c", "lab-e"}
    assert len({row["profile"] for row in usable}) == 6
    assert len({row["sample_name"] for row in usable}) == 24
    assert all(sum(row[f"seconds_{phase}"] for row in usable) > 60 for phase in LAYOUT.phases)
    assert not any(row["synthetic"] for row in usable)


def test_two_sessions_with_images_of_their_own_are_in_the_embedded_store() -> None:
    rows = [row for row in sweep() if row["verdict"] in ("accepted", "degraded")]
    images: dict[str, set[str]] = {}
    for row in rows:
        images.setdefault(episode_day(row["episode_id"]), set()).add(row["image_sha256"])
    first, second = images.values()
    assert images.keys() == {"2026-11-21", "2026-11-25"}
    assert not first & second
    clean_s = sum(row["seconds_clean"] for row in rows)
    assert clean_s > 2 * 3600  # false alarms are counted on it


def test_the_embedded_store_is_between_16_and_24_megabytes() -> None:
    files = (ROOT / "data" / "store").rglob("*")
    n_bytes = sum(path.stat().st_size for path in files if path.is_file())
    assert 16_000_000 <= n_bytes <= 24_000_000


def test_golden_vectors_replay() -> None:
    assert differences() == []


if __name__ == "__main__":  # rewrite the golden file, after looking at what changed
    lines = [json.dumps(row, sort_keys=True) for row in sweep()]
    GOLDEN.write_text("\n".join(lines) + "\n")
    sys.stdout.write(f"{len(lines)} rows\n")
