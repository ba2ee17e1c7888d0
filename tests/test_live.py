"""Live windows are batch windows, whatever the order and size of what arrives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from builders import make_members, pack, ulid

from benchmarks.streaming import read, write
from episodes.format import SOURCES
from episodes.reading import parse_episode
from episodes.store import list_store
from features.extraction import Extracted, extract
from features.registry import LAYOUT
from live import sources
from live.sources import DEPLOYABLE, FolderSource, ReplaySource, StdinSource
from live.stream import LEAP_S, MAX_ROWS, LiveWindow, LiveWindows

ROOT = Path(__file__).parent.parent
STORE = ROOT / "data" / "store"
SEEN = LAYOUT.channels_of("realistic")
SECOND = 1_000_000_000
RECORDED = (
    "01M7ZVF1R9X2K3EXHDZ6ZEPXS1",
    "01M7ZXJ52WC7TZYFN3421Y5WJ7",
    "01M88BN68TR9ZRPBHDWCWYT3Z6",
)
"""Of the first session, with a gap in guest's rows, and with a coarse netflow clock."""


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
    np.testing.assert_array_equal(np.stack([w.baseline for w in live]), batch.baseline)
    np.testing.assert_array_equal(np.stack([w.level for w in live]), batch.level)


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


# --- through every source


def assert_same_values(live: list[LiveWindow], batch: Extracted) -> int:
    """Compare what a device sees; returns how many windows differ, by netflow's clock alone."""
    assert len(live) == len(batch.windows)
    different = 0
    for i, (window, start) in enumerate(zip(live, batch.windows.start_bin, strict=True)):
        expected = batch.series[start : start + 100]
        wrong = ~((window.series == expected) | (np.isnan(window.series) & np.isnan(expected)))
        sources = {LAYOUT.channels[c].source for c in np.flatnonzero(wrong.any(axis=0) & SEEN)}
        assert sources <= {"netflow"}
        different += bool(sources)
        if not sources and not different:
            kept = np.repeat(SEEN, len(LAYOUT.stats))
            np.testing.assert_array_equal(window.features[kept], batch.features[i][kept])
            np.testing.assert_array_equal(window.baseline[kept], batch.baseline[i][kept])
    return different


@pytest.mark.parametrize("episode_id", RECORDED)
def test_every_source_gives_the_windows_of_batch(episode_id: str, tmp_path: Path) -> None:
    stored = list_store(STORE).find(episode_id)
    episode = parse_episode(stored.path.read_bytes(), episode_id, LAYOUT.fields)
    batch, members = extract(episode, LAYOUT), dict(episode.members)
    replay = ReplaySource(members, 0)
    origin = replay.origin_ns()
    coarse = bool(np.all(episode.sources["netflow"].t_wall_ns % SECOND == 0))
    replayed = read(replay, origin)
    different = assert_same_values(replayed, batch)
    assert (different > 0) == coarse

    for name, content in members.items():
        (tmp_path / name).write_bytes(content)
    follow = FolderSource(tmp_path)
    followed = read(follow, follow.origin_ns(), until_idle=True)

    ends = os.pipe()
    lines = b"\n".join(lines for _, _, lines in replay_rows(members)) + b"\n"
    writer = threading.Thread(target=write, args=(ends[1], lines))
    writer.start()
    piped = read(StdinSource(ends[0]), origin)
    writer.join()
    os.close(ends[0])
    for others in (followed, piped):
        assert len(others) == len(replayed)
        if coarse:  # how much of the clock is known depends on which rows came together
            assert_same_values(others, batch)
            continue
        for one, other in zip(replayed, others, strict=True):
            np.testing.assert_array_equal(one.series, other.series)
            np.testing.assert_array_equal(one.baseline, other.baseline)


def replay_rows(members: dict[str, bytes]) -> Iterable[tuple[int, str, bytes]]:
    from live.timeline import timeline

    return timeline(members, DEPLOYABLE)


def test_a_folder_is_followed_while_it_grows(tmp_path: Path) -> None:
    members = make_members("lab-a", duration_s=30)
    follow = FolderSource(tmp_path)
    assert follow.read() == []  # nothing is there yet
    windows, made = LiveWindows(LAYOUT), []
    held: dict[str, bytes] = {}
    for _, source, lines in replay_rows(members):
        content = held.get(source, b"") + lines + b"\n"
        held[source] = content[-9:]  # a line is cut where a reader finds it
        with (tmp_path / SOURCES[source].file).open("ab") as file:
            file.write(content[:-9])
        for name, found in follow.read():
            made += windows.push(name, found)
    whole = read(ReplaySource(members, 0), None)
    assert len(made) >= 3
    for window, expected in zip(made, whole, strict=False):
        np.testing.assert_array_equal(window.series, expected.series)


def all_read(follow: FolderSource) -> list[bytes]:
    return [line for _ in range(4) for _, lines in follow.read() for line in lines.split(b"\n")]


@pytest.mark.parametrize("end", [b"\n", b""])
def test_rows_written_before_a_file_gave_way_to_another_count(tmp_path: Path, end: bytes) -> None:
    rows, file = guest_rows(4, START), tmp_path / SOURCES["guest"].file
    file.write_bytes(rows[0] + b"\n")
    follow = FolderSource(tmp_path)
    assert all_read(follow) == rows[:1]
    with file.open("ab") as handle:
        handle.write(b"\n".join(rows[1:3]) + end)
    file.rename(tmp_path / "older")
    file.write_bytes(rows[3] + b"\n")
    assert all_read(follow) == rows[1:]
    with file.open("ab") as handle:
        handle.write(rows[0] + b"\n")
    file.unlink()
    assert all_read(follow) == rows[:1]
    follow.close()


def test_a_file_that_was_cut_begins_anew(tmp_path: Path) -> None:
    rows, file = guest_rows(4, START), tmp_path / SOURCES["guest"].file
    file.write_bytes(b"\n".join(rows[:3]) + b"\n")
    follow = FolderSource(tmp_path)
    assert all_read(follow) == rows[:3]
    file.write_bytes(rows[3] + b"\n")
    assert all_read(follow) == rows[3:]
    follow.close()


@pytest.mark.parametrize("place", ["folder", "pipe", "folder is a file"])
def test_what_is_no_file_in_its_place_is_waited_out(tmp_path: Path, place: str) -> None:
    rows, folder = guest_rows(2, START), tmp_path / "episode"
    file = folder / SOURCES["guest"].file
    folder.mkdir()
    file.write_bytes(rows[0] + b"\n")
    follow = FolderSource(folder)
    assert all_read(follow) == rows[:1]
    file.unlink()
    if place == "folder":
        file.mkdir()
    elif place == "pipe":
        os.mkfifo(file)
    else:
        folder.rmdir()
        folder.touch()
    assert all_read(follow) == []
    shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    folder.mkdir()
    file.write_bytes(rows[1] + b"\n")
    assert all_read(follow) == rows[1:]
    follow.close()


def test_a_slow_replay_does_not_wait_for_its_next_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_WAIT_S", 0.01)
    replay = ReplaySource(make_members("lab-a", duration_s=11), 1e-6)
    assert replay.read()
    assert [replay.read() for _ in range(3)] == [[], [], []]


# --- rows that are not as they should be


def guest_rows(n: int, start_ns: int, *, first: int = 0, mono_ns: int = 0) -> list[bytes]:
    """Ten rows per second of a guest whose counters rise."""
    return [
        json.dumps(
            {
                "t_wall_ns": start_ns + i * SECOND // 10,
                "t_mono_ns": mono_ns + i * SECOND // 10,
                "source": "guest_agent",
                "available_in_deployment": True,
                "ctxt_switches": 100 * (first + i),
                "procs_running": 1 + i % 3,
                "net_rx_bytes": 7 * (first + i),
            }
        ).encode()
        for i in range(n)
    ]


START = 1_795_000_000 * SECOND


def pushed(windows: LiveWindows, rows: list[bytes], at_once: int = 1) -> list[LiveWindow]:
    return [
        window
        for i in range(0, len(rows), at_once)
        for window in windows.push("guest", b"\n".join(rows[i : i + at_once]))
    ]


def test_a_window_comes_as_soon_as_no_row_can_change_it() -> None:
    windows = LiveWindows(LAYOUT, START)
    came = [i for i, row in enumerate(guest_rows(300, START)) if list(windows.push("guest", row))]
    assert came[:3] == [110, 160, 210]  # tenths of a second: 1 s after the end of each


@pytest.mark.parametrize("at_once", [1, 7, 400])
def test_later_rows_change_nothing_earlier(at_once: int) -> None:
    rows = guest_rows(400, START)
    whole = pushed(LiveWindows(LAYOUT, START), rows, at_once)
    part = pushed(LiveWindows(LAYOUT, START), rows[:250], at_once)
    assert len(part) == 3 < len(whole)
    for one, other in zip(part, whole, strict=False):
        np.testing.assert_array_equal(one.series, other.series)
        np.testing.assert_array_equal(one.baseline, other.baseline)


def test_rows_out_of_order_and_repeated_change_nothing() -> None:
    rows = guest_rows(400, START)
    expected = pushed(LiveWindows(LAYOUT, START), rows)
    shuffled = rows.copy()
    for i in range(0, 390, 5):
        shuffled[i], shuffled[i + 4] = shuffled[i + 4], shuffled[i]
    windows = LiveWindows(LAYOUT, START)
    made = pushed(windows, [row for each in shuffled for row in (each, each)])
    assert windows.counts["repeated"] == 400
    assert windows.counts["late"] == windows.counts["stray"] == 0
    for one, other in zip(made, expected, strict=True):
        np.testing.assert_array_equal(one.series, other.series)


def test_a_repeated_bucket_counts_once() -> None:
    packets = json.dumps(
        {"t_wall_ns": START + 3 * SECOND + 5, "t_mono_ns": 1, "source": "bridge_pcap",
         "available_in_deployment": True, "packets_out": 4}
    ).encode()  # fmt: skip
    windows = LiveWindows(LAYOUT, START)
    for _ in range(2):
        list(windows.push("netflow", packets))
    [window] = pushed(windows, guest_rows(112, START))
    out = LAYOUT.channel_names.index("netflow.packets_out")
    assert np.nansum(window.series[:, out]) == 4


def test_a_row_that_comes_too_late_is_counted() -> None:
    windows = LiveWindows(LAYOUT, START)
    rows = guest_rows(300, START)
    pushed(windows, [row for i, row in enumerate(rows) if i != 5])
    pushed(windows, [rows[5]])
    assert windows.counts["late"] == 1


def test_a_row_alone_in_another_time_is_left_out() -> None:
    rows = guest_rows(300, START)
    expected = pushed(LiveWindows(LAYOUT, START), rows)
    strangers = guest_rows(1, START + 30 * 365 * 86_400 * SECOND) + guest_rows(1, 0)
    windows = LiveWindows(LAYOUT, START)
    made = pushed(windows, rows[:150] + strangers + rows[150:])
    assert windows.counts["stray"] == 2
    for one, other in zip(made, expected, strict=True):
        np.testing.assert_array_equal(one.series, other.series)


@pytest.mark.parametrize("at_once", [1, 40])
def test_after_a_sleep_windows_start_anew_without_the_past(at_once: int) -> None:
    slept = START + (LEAP_S + 100) * SECOND
    windows = LiveWindows(LAYOUT, START)
    before = pushed(windows, guest_rows(300, START), at_once)
    after = pushed(windows, guest_rows(300, slept, first=300, mono_ns=30 * SECOND), at_once)
    assert len(before) == 4
    assert [bool(w.restarted) for w in after] == [True, False, False, False]
    assert after[0].start_ns == slept
    assert [w.number for w in before + after] == list(range(8))
    alone = pushed(LiveWindows(LAYOUT, slept), guest_rows(300, slept, first=300))
    for one, other in zip(after, alone, strict=True):
        np.testing.assert_array_equal(one.series, other.series)
        np.testing.assert_array_equal(one.baseline, other.baseline)


@pytest.mark.parametrize("at_once", [1, 40])
def test_a_clock_set_back_starts_windows_anew_and_keeps_the_past(at_once: int) -> None:
    windows = LiveWindows(LAYOUT, START)
    before = pushed(windows, guest_rows(300, START), at_once)
    back = START + 27 * SECOND  # three seconds less than it was
    after = pushed(windows, guest_rows(150, back, first=300, mono_ns=30 * SECOND), at_once)
    assert after[0].start_ns == back
    assert "3 s" in after[0].restarted
    assert windows.past == len(before) + len(after)
    assert not np.isnan(
        after[0].series[:-1, LAYOUT.channel_names.index("guest.procs_running")]
    ).any()


def test_a_gap_shorter_than_a_sleep_gives_empty_windows_as_in_batch() -> None:
    windows = LiveWindows(LAYOUT, START)
    pushed(windows, guest_rows(120, START))
    made = pushed(windows, guest_rows(120, START + 60 * SECOND, first=600, mono_ns=60 * SECOND))
    assert not any(w.restarted for w in made)
    assert min(w.coverage["guest"] for w in made) == 0.0


def test_a_dead_source_neither_holds_up_windows_nor_is_forgotten() -> None:
    windows = LiveWindows(LAYOUT, START)
    pushed(windows, guest_rows(120, START))
    assert windows.silent(DEPLOYABLE) == []
    made = []
    for i in range(400):
        bucket = {
            "t_wall_ns": START + 12 * SECOND + i * SECOND // 10, "t_mono_ns": i,
            "source": "bridge_pcap", "available_in_deployment": True, "packets_out": 1,
        }  # fmt: skip
        made += windows.push("netflow", json.dumps(bucket).encode())
    assert windows.silent(DEPLOYABLE) == ["guest"]
    assert len(made) >= 5
    assert made[-1].coverage["guest"] == 0.0
    out = LAYOUT.channel_names.index("netflow.packets_out")
    np.testing.assert_array_equal(made[-1].series[:, out], 1.0)
    back = pushed(windows, guest_rows(130, START + 52 * SECOND, first=520, mono_ns=52 * SECOND))
    assert back[-1].coverage["guest"] > 0.1
    assert windows.silent(DEPLOYABLE) == []


@pytest.mark.parametrize("source", DEPLOYABLE)
def test_memory_is_bounded_whatever_arrives(source: str) -> None:
    windows = LiveWindows(LAYOUT, START)
    tag = SOURCES[source].tag
    for begin in range(0, 60_000, 2_000):  # all within one second: no window is ever finished
        rows = b"\n".join(
            b'{"t_wall_ns":%d,"t_mono_ns":%d,"source":"%s","available_in_deployment":true}'
            % (START + i, i, tag.encode())
            for i in range(begin, begin + 2_000)
        )
        assert not list(windows.push(source, rows))
    assert windows.counts["dropped"] == 60_000 - MAX_ROWS
    assert len(windows._rows[source]) == MAX_ROWS
    for junk in (
        b"\xff\xfe\n" * 1000,
        b"{}\n" * 1000,
        b'{"t_wall_ns":1e400}',
        b"[" * 50_000,
        b"[" * 60_000,
    ):
        list(windows.push(source, junk))
    assert windows.counts["malformed"] > 0
    assert len(windows._seen[source]) <= 5_000
    assert sum(map(len, windows._seen[source])) <= 100_000


def test_a_line_without_end_is_dropped() -> None:
    ends = os.pipe()
    row = guest_rows(1, START)[0]
    writer = threading.Thread(target=write, args=(ends[1], b"x" * 3_000_000 + b"\n" + row + b"\n"))
    writer.start()
    source = StdinSource(ends[0])
    got: list[tuple[str, bytes]] = []
    while (found := source.read()) is not None:
        got += found
    writer.join()
    os.close(ends[0])
    assert got == [("guest", row)]
    assert source._lines.dropped == 1


# --- a restart


def test_a_restarted_stream_goes_on_with_the_same_windows() -> None:
    now = time.time_ns()
    rows = guest_rows(600, now - 30 * SECOND)
    whole = pushed(LiveWindows(LAYOUT, now - 30 * SECOND), rows)
    first = LiveWindows(LAYOUT, now - 30 * SECOND)
    made = pushed(first, rows[:277])
    second = LiveWindows(LAYOUT)
    assert second.resume(first.state(), now)
    made += pushed(second, rows[277:])
    assert [w.number for w in made] == [w.number for w in whole]
    for one, other in zip(made, whole, strict=True):
        np.testing.assert_array_equal(one.series, other.series)
        np.testing.assert_array_equal(one.baseline, other.baseline)
    late = LiveWindows(LAYOUT)
    assert not late.resume(first.state(), now + 2 * LEAP_S * SECOND)


def test_lines_that_are_sent_again_after_a_restart_count_once() -> None:
    now = time.time_ns()
    rows = guest_rows(600, now - 30 * SECOND)

    def bucket(t_ns: int) -> bytes:
        return json.dumps(
            {"t_wall_ns": t_ns, "t_mono_ns": 1, "source": "bridge_pcap",
             "available_in_deployment": True, "packets_out": 4}
        ).encode()  # fmt: skip

    packets = [bucket(now - 30 * SECOND + s * SECOND + 5) for s in range(28)]
    first = LiveWindows(LAYOUT, now - 30 * SECOND)
    list(first.push("netflow", b"\n".join(packets)))
    made = pushed(first, rows[:277])
    second = LiveWindows(LAYOUT)
    assert second.resume(first.state(), now)
    list(second.push("netflow", b"\n".join(packets)))
    made += pushed(second, rows[100:])
    assert second.counts["repeated"] > 0
    out = LAYOUT.channel_names.index("netflow.packets_out")
    per_bin = np.concatenate([window.series[:, out] for window in made])
    assert np.nanmax(per_bin) == 4


# --- without Numba

PLAIN = """
import sys
sys.modules |= dict.fromkeys(("numba", "pydantic", "safetensors", "polars", "pyarrow"))
import json, pathlib
import numpy as np
from episodes.jit import COMPILES
from features.registry import LAYOUT
from live.cli import recordings
from live.sources import ReplaySource
from live.stream import LiveWindows
assert not COMPILES
[recording] = recordings(sys.argv[1])
replay = ReplaySource(recording.members, 0)
windows, made = LiveWindows(LAYOUT, replay.origin_ns()), []
while (found := replay.read()) is not None:
    for name, lines in found:
        made += windows.push(name, lines)
np.savez(sys.argv[2], series=np.stack([w.series for w in made]),
         features=np.stack([w.features for w in made]),
         baseline=np.stack([w.baseline for w in made]))
"""


def test_what_numba_compiles_also_runs_plain_bit_for_bit(tmp_path: Path) -> None:
    stored = list_store(STORE).find(RECORDED[1])
    episode = parse_episode(stored.path.read_bytes(), stored.episode_id, LAYOUT.fields)
    folder, out = tmp_path / "episode", tmp_path / "plain.npz"
    folder.mkdir()
    for name, content in episode.members.items():
        (folder / name).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(folder), str(out)], cwd=ROOT, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    replay = ReplaySource(dict(episode.members), 0)
    windows, made = LiveWindows(LAYOUT, replay.origin_ns()), []
    while (found := replay.read()) is not None:
        for name, lines in found:
            made += windows.push(name, lines)
    with np.load(out) as plain:
        for name in ("series", "features", "baseline"):
            expected = np.stack([getattr(w, name) for w in made])
            np.testing.assert_array_equal(plain[name].view(np.int32), expected.view(np.int32))
