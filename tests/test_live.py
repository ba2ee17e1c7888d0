"""Live windows are batch windows, whatever the order and size of what arrives."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from builders import make_members, pack, ulid

from episodes.format import SOURCES
from episodes.reading import parse_episode
from episodes.store import list_store
from features.extraction import extract
from features.registry import LAYOUT
from live.stream import LiveScorer, LiveWindow, LiveWindows

STORE = Path(__file__).parent.parent / "data" / "store"


def stream(members: dict[str, bytes], origin_ns: int, chunk: int) -> list[LiveWindow]:
    """Feed an episode's rows, those of ``chunk`` tenths of a second at a time, source by source."""
    rows = [
        (json.loads(line)["t_wall_ns"], name, line)
        for name, source in SOURCES.items()
        for line in members.get(source.file, b"").splitlines(keepends=True)
    ]
    live = LiveWindows(LAYOUT, origin_ns)
    windows: list[LiveWindow] = []
    rows.sort(key=lambda row: row[0])
    for _, tick in groupby(rows, key=lambda row: row[0] // (chunk * 100_000_000)):
        together = list(tick)
        for source in SOURCES:
            windows += live.push(source, b"".join(x for _, name, x in together if name == source))
    return windows + list(live.close())


def assert_equal_to_batch(packed: bytes, episode_id: str, chunk: int) -> None:
    episode = parse_episode(packed, episode_id, LAYOUT.fields)
    batch = extract(episode, LAYOUT)
    live = stream(dict(episode.members), int(episode.labels.t_wall_ns.min()), chunk)
    assert [w.start_s for w in live] == batch.windows.start_s.tolist()
    for window, start in zip(live, batch.windows.start_bin, strict=True):
        np.testing.assert_array_equal(window.series, batch.series[start : start + 100])
    np.testing.assert_array_equal(np.stack([w.features for w in live]), batch.features)


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_a_recorded_episode_streams_to_its_batch_windows(chunk: int) -> None:
    stored = list_store(STORE).find("01M7ZVF1R9X2K3EXHDZ6ZEPXS1")
    assert_equal_to_batch(stored.path.read_bytes(), stored.episode_id, chunk)


@pytest.mark.parametrize(
    "faults",
    [
        {"drop": {"guest": [(12.0, 17.5)]}},
        {"without": ("guest",)},
        {"without": ("netflow",)},
        {"rate_hz": {"proc": 4.0}},
    ],
)
def test_gaps_and_absent_sources_stream_as_in_batch(faults: dict) -> None:
    episode_id = ulid(1_790_000_000_000, 1)
    members = make_members("lab-a", episode_id, duration_s=45, **faults)
    assert_equal_to_batch(pack(episode_id, members), episode_id, chunk=2)


def test_a_window_comes_as_soon_as_no_row_can_change_it() -> None:
    episode_id = ulid(1_790_000_000_000, 2)
    members = make_members("lab-a", episode_id, duration_s=20)
    episode = parse_episode(pack(episode_id, members), episode_id, LAYOUT.fields)
    origin = int(episode.labels.t_wall_ns.min())
    live = LiveWindows(LAYOUT, origin)
    came_at = []
    for line in members[SOURCES["guest"].file].splitlines(keepends=True):
        at = (json.loads(line)["t_wall_ns"] - origin) / 1e9
        came_at += [at - window.start_s for window in live.push("guest", line)]
    assert came_at[0] == pytest.approx(11.0, abs=0.11)


def test_an_oracle_checkpoint_is_refused() -> None:
    class Oracle:
        header = {"mode": "oracle", "keep_mask": [], "input_kind": "summary"}  # noqa: RUF012
        variant = type("Variant", (), {"name": "gbt_oracle"})
        model = None

    with pytest.raises(ValueError, match=r"needs a realistic checkpoint, got gbt_oracle"):
        LiveScorer(Oracle())  # type: ignore[arg-type]
