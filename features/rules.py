"""Short episodes that exercise the rules of the data format one by one, for ``features.golden``.

Each is cut from a recorded episode and edited, so that a change of its rule changes what comes out
of it. The committed file holds the results; this module is needed only to write it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from episodes.archive import read_members
from episodes.format import (
    ARCHIVE_SUFFIX,
    EVENTS_FILE,
    LABELS_FILE,
    META_FILE,
    NS_PER_S,
    SOURCES,
)
from features.contract import GOLDEN_FILE

Row = dict[str, Any]
Edit = Callable[["EditableEpisode"], None]

FINE, COARSE = "01M7ZXJ52WC7TZYFN3421Y5WJ7", "01M7ZVNCNV5MT2GQHFWCZKMY7M"
"""Recorded golden episodes: with every source, and with a netflow clock of whole seconds."""

BIN_NS = 100_000_000
POLLED = ("proc", "qmp", "guest")


@dataclass
class EditableEpisode:
    """A piece of a recorded episode that is being edited; times are counted from its origin."""

    origin: int  # Unix ns of its first label
    meta: Row
    labels: list[Row | bytes]
    events: list[Row | bytes]
    rows: dict[str, list[Row | bytes]] = field(default_factory=dict)  # bytes: a line as it is

    def files(self) -> dict[str, bytes]:
        """The members of its archive; a source without a list of rows has no file."""
        lines: dict[str, Sequence[Row | bytes]] = {
            META_FILE: [self.meta],
            LABELS_FILE: self.labels,
            EVENTS_FILE: self.events,
            **{SOURCES[name].file: rows for name, rows in self.rows.items()},
        }
        return {name: b"".join(map(_line, rows)) for name, rows in lines.items()}

    @property
    def first_label(self) -> Row:
        first = self.labels[0]
        assert isinstance(first, dict)
        return first

    def of(self, source: str, begin: float = -10.0, end: float = 1e6) -> Iterator[Row]:
        """The rows of a source in a span of seconds."""
        for row in self.rows[source]:
            if isinstance(row, dict) and begin <= self.at(row) < end:
                yield row

    def at(self, row: Row) -> float:
        return (row["t_wall_ns"] - self.origin) / NS_PER_S

    def drop(self, source: str, begin: float, end: float) -> None:
        gone = {id(row) for row in self.of(source, begin, end)}
        self.rows[source] = [row for row in self.rows[source] if id(row) not in gone]

    def shift(self, row: Row, by_ns: int) -> None:
        """Another instant on both clocks."""
        row["t_wall_ns"] += by_ns
        row["t_mono_ns"] += by_ns

    def move(self, row: Row, to_ns: int) -> None:
        """To an instant, in ns from the origin."""
        self.shift(row, self.origin + to_ns - row["t_wall_ns"])

    def nearest(self, source: str, second: float) -> Row:
        return min(self.of(source), key=lambda row: abs(self.at(row) - second))


def _line(row: Row | bytes) -> bytes:
    return (
        row if isinstance(row, bytes) else json.dumps(row, separators=(",", ":")).encode() + b"\n"
    )


def cut(recorded: str, begin: float, seconds: float, lead: float = 0.0) -> EditableEpisode:
    """Seconds of a recorded episode, with ``lead`` seconds of rows before its first label."""
    packed = (GOLDEN_FILE.parent / f"{recorded}{ARCHIVE_SUFFIX}").read_bytes()
    members = read_members(packed, recorded)
    read = {
        name: [json.loads(line) for line in content.splitlines()]
        for name, content in members.items()
        if name != META_FILE
    }
    labels = read[LABELS_FILE]
    origin = labels[0]["t_wall_ns"] + round(begin * NS_PER_S)
    until = origin + round(seconds * NS_PER_S)

    def within(rows: list[Row], since: int) -> list[Row]:
        return [row for row in rows if since <= row["t_wall_ns"] < until]

    in_force = [row for row in labels if row["t_wall_ns"] <= origin][-1]
    since = origin - round(lead * NS_PER_S)
    meta = json.loads(members[META_FILE])
    return EditableEpisode(
        origin,
        {key: meta[key] for key in ("episode_id", "host_id", "schema_version")}
        | {"started_at_wall_ns": since, "ended_at_wall_ns": until},
        [{**in_force, "t_wall_ns": origin}, *within(labels, origin + 1)],
        [*within(read[EVENTS_FILE], since)],
        {
            name: [*within(read[source.file], since)]
            for name, source in SOURCES.items()
            if read[source.file]
        },
    )


@dataclass(frozen=True)
class Rule:
    """One rule, in words, and how its episode is made."""

    text: str
    edit: Edit
    base: tuple[str, float, float, float]

    def files(self) -> dict[str, bytes]:
        episode = cut(*self.base)
        self.edit(episode)
        return episode.files()


RULES: dict[str, Rule] = {}
"""By name; the first, without an edit, shows what every episode shows."""


def rule(
    name: str,
    text: str,
    recorded: str = FINE,
    begin: float = 44.0,
    seconds: float = 12.4,
    lead: float = 0.0,
) -> Callable[[Edit], Edit]:
    """Declare a rule; see ``cut`` for the piece that its episode is made from."""

    def keep(edit: Edit) -> Edit:
        RULES[name] = Rule(text, edit, (recorded, begin, seconds, lead))
        return edit

    return keep


@rule("plain", "rows as they are recorded", FINE, 43.0, 20.3, 0.0)
def _(_: EditableEpisode) -> None:
    """As it is: three windows, three phases."""


# --- levels, counters, buckets


@rule("level-age", "a level is carried while it is at most 1.0 s old at the bin's end")
def _(it: EditableEpisode) -> None:
    for source, second, off in (("proc", 2.0, 0), ("qmp", 5.0, -1), ("guest", 3.0, 0)):
        it.drop(source, second - 0.04, second + 3.04)
        it.move(it.nearest(source, second - 0.1), round(second * NS_PER_S) + off)
    it.drop("guest", 8.0, 9.2)


@rule("level-last", "a level is the last row in the bin")
def _(it: EditableEpisode) -> None:
    for source, key in (("proc", "rss_bytes"), ("qmp", "balloon_free_bytes"),
                        ("guest", "mem_available_bytes")):  # fmt: skip
        more = list(it.of(source))
        for i, row in enumerate(list(it.of(source, 1.0, 9.0))):
            for part in (1, 2):
                late = dict(row)
                it.shift(late, part * 11_000_000)
                late[key] = row[key] + 4096 * (i % 7 + 1) * part
                more.append(late)
        more.sort(key=it.at)
        it.rows[source] = [*more]


@rule("ties", "of rows with equal times, the last in the file counts; buckets are summed")
def _(it: EditableEpisode) -> None:
    for source in SOURCES:
        rows = list(it.of(source, 1.0, 10.0))
        for i, row in enumerate(rows[::3]):
            twin = {
                key: value + 1000 * (i + 1) if isinstance(value, int) and key[:2] != "t_" else value
                for key, value in row.items()
                if key != "available_in_deployment"
            } | {"available_in_deployment": row["available_in_deployment"]}
            place = it.rows[source].index(row)
            it.rows[source].insert(place + i % 2, twin)


@rule("disorder", "rows are sorted by t_wall_ns first")
def _(it: EditableEpisode) -> None:
    for source in SOURCES:
        rows = it.rows[source]
        rows[:] = [row for i in range(0, len(rows), 7) for row in reversed(rows[i : i + 7])]


@rule("disorder-late", "rows are sorted by time, even where the first is the earliest")
def _(it: EditableEpisode) -> None:
    for source in SOURCES:
        rows = it.rows[source]
        rows[1:] = [row for i in range(1, len(rows), 5) for row in reversed(rows[i : i + 5])]


@rule("counter-reset", "a decrease of a counter is missing, never negative or a spike")
def _(it: EditableEpisode) -> None:
    resets = {
        "proc": ("minor_faults", "vcpu_run_ns", "io_rchar_bytes"),
        "qmp": ("rd_bytes", "wr_operations"),
        "guest": ("forks", "interrupts", "net_rx_bytes", "ctxt_switches"),
    }
    for source, names in resets.items():
        for i, name in enumerate(names):
            second = 2.0 + 1.7 * i
            before = it.nearest(source, second - 0.1)[name]
            for row in it.of(source, second):
                row[name] = max(0, row[name] - before) if i % 2 == 0 else row[name] - before // 2
    for row in it.of("guest", 7.0):  # by the least, and back to where it was
        row["page_faults"] = it.nearest("guest", 6.95)["page_faults"] - 1
    for row in it.of("guest", 4.0):  # does not move: 0, not missing
        row["tcp_active_opens"] = it.nearest("guest", 3.9)["tcp_active_opens"]


@rule("counter-gap", "a stretch of a counter over 1.0 s is missing, and every bin it overlaps")
def _(it: EditableEpisode) -> None:
    for source, second, span in (("proc", 3.0, NS_PER_S), ("qmp", 3.0, NS_PER_S + 1),
                                 ("guest", 4.0, NS_PER_S)):  # fmt: skip
        first, last = it.nearest(source, second), it.nearest(source, second + 1.0)
        it.drop(source, it.at(first) + 1e-6, it.at(last))
        it.move(first, round(second * NS_PER_S) + 7)
        it.move(last, round(second * NS_PER_S) + 7 + span)
    it.drop("guest", 7.0, 9.5)
    it.move(it.nearest("guest", 6.95), 7 * NS_PER_S)
    it.move(it.nearest("guest", 9.55), 95 * BIN_NS)
    it.drop("proc", 7.0, 8.4)
    it.move(it.nearest("proc", 6.95), 7 * NS_PER_S + 1)
    it.move(it.nearest("proc", 8.45), 84 * BIN_NS - 1)


@rule("counter-between", "a counter is interpolated linearly in time between its rows")
def _(it: EditableEpisode) -> None:
    for n, source in enumerate(POLLED):
        rows = list(it.of(source))
        kept = [row for i, row in enumerate(rows) if i % (4 + n) == 0]
        for i, row in enumerate(kept):
            it.shift(row, (i * 37_000_001) % 90_000_000)
        it.rows[source] = list(kept)


@rule("counter-edges", "a bin that is not wholly inside a counter's rows is missing")
def _(it: EditableEpisode) -> None:
    for source, begin, end in (("proc", 1.5, 11.0), ("qmp", 0.7, 9.0), ("guest", 2.0, 10.5)):
        it.drop(source, -1.0, begin)
        it.drop(source, end, 99.0)
    first = min(it.of("qmp"), key=it.at)
    it.move(first, 8 * BIN_NS)
    last = max(it.of("qmp"), key=it.at)
    it.move(last, 89 * BIN_NS)
    it.move(min(it.of("guest"), key=it.at), 20 * BIN_NS + 1)
    it.move(max(it.of("guest"), key=it.at), 104 * BIN_NS - 1)


@rule("counter-two", "two values of a counter give a rate between them, one gives none")
def _(it: EditableEpisode) -> None:
    kept = {"net_rx_bytes": (3.0, 3.8), "forks": (6.0,), "interrupts": (2.0, 2.4)}
    for name, seconds in kept.items():
        rows = [it.nearest("guest", second) for second in seconds]
        for row in it.of("guest"):
            if row not in rows:
                row[name] = None


@rule("depth", "a line nested more than 64 deep is malformed; brackets in strings count")
def _(it: EditableEpisode) -> None:
    for source, second, depth in (("proc", 3.0, 63), ("guest", 3.0, 64), ("qmp", 2.0, 65)):
        for i, row in enumerate(list(it.of(source, second, second + 0.6))):
            nested = "[" * (depth - 1) + "]" * (depth - 1)
            line = json.dumps({**row, "more": "["} if i % 2 else row)[:-1]
            place = it.rows[source].index(row)
            it.rows[source][place] = f'{line},"deep":{nested}}}\n'.encode()


@rule("counter-exact", "a counter that did not move gives exactly 0, whatever its value")
def _(it: EditableEpisode) -> None:
    for i, row in enumerate(it.of("guest")):
        row["net_tx_bytes"] = 2**61 + 1024 * (i // 40)
        row["disk_read_sectors"] = 2**53 + 1 + i // 50 * 4
    for row in it.of("proc"):
        row["vcpu_run_ns"] = 9_000_000_000_000_000_000


@rule("lead-in", "rows before the first label still serve carrying and interpolation",
      FINE, 44.0, 12.4, 1.6)  # fmt: skip
def _(it: EditableEpisode) -> None:
    it.drop("proc", -0.6, 0.35)
    it.drop("qmp", -0.95, 0.0)
    it.drop("guest", -0.2, 0.15)


@rule("bucket-sum", "a bucket is the sum of the rows whose instant falls in its bin")
def _(it: EditableEpisode) -> None:
    more: list[Row] = []
    for i, row in enumerate(it.of("netflow")):
        it.move(row, (i * 3 % 124) * BIN_NS)  # on the edge of a bin
        more += [{**row, "t_wall_ns": row["t_wall_ns"] + ns, "packets_in": i + ns % 97}
                 for ns in (1, BIN_NS - 1)]  # fmt: skip
    for second in (-0.05, 12.37):  # before the grid and after it
        more.append({**it.nearest("netflow", 3.0),
                     "t_wall_ns": it.origin + round(second * NS_PER_S)})  # fmt: skip
    it.rows["netflow"] = [*sorted([*it.of("netflow"), *more], key=it.at)]


@rule("bucket-none", "a bucket without rows is 0")
def _(it: EditableEpisode) -> None:
    it.drop("netflow", 1.0, 11.0)


@rule("bucket-spoiled", "a bucket with a row that has no value is missing")
def _(it: EditableEpisode) -> None:
    names = ("packets_out", "bytes_in", "syn_out", "new_flows")
    odd: tuple[Any, ...] = (None, "7", True, float("nan"), float("inf"), {"n": 1}, [2])
    for i, row in enumerate(list(it.of("netflow", 1.0, 10.0))):
        if i % 4 == 0:
            row[names[i // 4 % 4]] = odd[i // 4 % 7]
        elif i % 9 == 1:
            del row["fin"]


@rule("unusable", "nulls, text, booleans and non-finite numbers are missing: the row is skipped")
def _(it: EditableEpisode) -> None:
    odd: tuple[Any, ...] = (None, "12", False, True, float("nan"), float("-inf"), {"a": 1}, [1], "")
    for source in POLLED:
        names = [n for n in next(it.of(source)) if n[:2] != "t_" and n not in _ENVELOPE]
        for i, row in enumerate(list(it.of(source, 1.0, 11.0))):
            if i % 3 == 0:
                row[names[i % len(names)]] = odd[i // 3 % len(odd)]
            elif i % 11 == 1:
                row.pop(names[i % len(names)])
    for row in it.of("guest", 4.0, 7.0):
        row["load_1m"] = None
        row["net_rx_bytes"] = "0"


_ENVELOPE = ("source", "available_in_deployment", "seq")


@rule("too-large", "a value too large for a float32 is missing")
def _(it: EditableEpisode) -> None:
    for row in it.of("proc", 3.0, 5.0):
        row["rss_bytes"] = 1e300
    for row in it.of("netflow", 3.0, 5.0):
        row["bytes_out"] = -1e39


# --- sources


@rule("no-guest", "a source without a file is missing")
def _(it: EditableEpisode) -> None:
    del it.rows["guest"]


@rule("no-netflow", "netflow without rows is missing, not 0")
def _(it: EditableEpisode) -> None:
    it.rows["netflow"] = []
    it.rows["qmp"] = []


@rule("netflow-alone", "netflow sets the grid's end only where it is the sole source")
def _(it: EditableEpisode) -> None:
    for source in POLLED:
        it.rows[source] = []


@rule("netflow-later", "a polled source sets the grid's end")
def _(it: EditableEpisode) -> None:
    for source in POLLED:
        it.drop(source, 11.0 + (source == "guest"), 99.0)


@rule("no-values", "a source without any usable value counts as absent")
def _(it: EditableEpisode) -> None:
    for source in ("qmp", "netflow"):
        for row in it.of(source):
            row.update({n: str(v) for n, v in row.items() if n[:2] != "t_" and n not in _ENVELOPE})
    for row in it.of("guest"):  # less than half of the fields, but some
        row.update({n: None for n in list(row)[9:] if n != "load_1m"})


@rule("bounds", "rows over 2 s outside the episode's start and end are not used")
def _(it: EditableEpisode) -> None:
    it.meta["ended_at_wall_ns"] = it.origin + 10 * NS_PER_S
    it.drop("proc", 12.0, 99.0)
    it.drop("qmp", 11.9, 99.0)
    it.drop("guest", 11.9, 99.0)
    it.drop("netflow", 11.9, 99.0)
    late = it.nearest("proc", 11.95)
    it.move(late, 12 * NS_PER_S + 1)  # one row of about 120
    it.move(it.nearest("guest", 11.85), 12 * NS_PER_S)  # on the bound
    early = dict(it.nearest("netflow", 5.0))
    early["t_wall_ns"] = it.meta["started_at_wall_ns"] - 2 * NS_PER_S - 1
    early["bytes_in"] = 123_456
    it.rows["netflow"].insert(0, early)  # one row of few


@rule("bounds-share", "with over 1 % of its rows outside the bounds, a source counts as absent",
      FINE, 44.0, 20.4, 0.0)  # fmt: skip
def _(it: EditableEpisode) -> None:
    it.rows["proc"] = it.rows["proc"][:200]
    it.rows["qmp"] = it.rows["qmp"][:199]
    it.rows["guest"] = it.rows["guest"][:200]
    for source, n in (("proc", 2), ("qmp", 2), ("guest", 1)):
        for row in it.rows[source][-n:]:
            assert isinstance(row, dict)
            it.shift(row, 30 * NS_PER_S)
    for row in list(it.of("netflow"))[5:8]:
        it.shift(row, -3600 * NS_PER_S)


@rule("no-bounds", "an episode that states no start and end has no bounds")
def _(it: EditableEpisode) -> None:
    del it.meta["started_at_wall_ns"]
    for row in list(it.of("netflow"))[:2]:
        it.shift(row, -50 * NS_PER_S)


@rule("day-away", "telemetry over a day from the first label cannot be aligned")
def _(it: EditableEpisode) -> None:
    del it.meta["ended_at_wall_ns"]
    it.move(max(it.of("proc"), key=it.at), 86_400 * NS_PER_S + 1)


@rule("day-before", "telemetry over a day before the first label cannot be aligned")
def _(it: EditableEpisode) -> None:
    del it.meta["ended_at_wall_ns"]
    it.move(min(it.of("proc"), key=it.at), -86_400 * NS_PER_S - 1)


@rule("no-label", "an episode without a label has no origin")
def _(it: EditableEpisode) -> None:
    it.labels = []


# --- netflow's clock


@rule("coarse", "netflow times in whole seconds are recovered from t_mono_ns", COARSE, 41.0, 12.4,
      0.0)  # fmt: skip
def _(_: EditableEpisode) -> None:
    """As recorded on a host whose collector writes whole seconds."""


@rule("coarse-alone", "the last recovered instant of netflow ends the grid", COARSE, 41.0, 12.4,
      0.0)  # fmt: skip
def _(it: EditableEpisode) -> None:
    it.rows["proc"], it.rows["qmp"] = [], []


@rule("coarse-fine", "netflow times are recovered only where every one is a whole second",
      COARSE, 41.0, 12.4, 0.0)  # fmt: skip
def _(it: EditableEpisode) -> None:
    it.nearest("netflow", 9.0)["t_wall_ns"] += 1


@rule("coarse-runs", "only a run of at least 10 rows is recovered, with its own offset",
      COARSE, 38.0, 15.4, 0.0)  # fmt: skip
def _(it: EditableEpisode) -> None:
    """A restart by 1 s or more ends a run; of one of 9 rows and one of 10, the first is kept."""
    rows = list(it.of("netflow"))
    for row in rows[10:19]:
        row["t_mono_ns"] += 7_250_000_000
    for row in rows[19:29]:
        row["t_mono_ns"] -= 3_500_000_000
    for row in rows[29:]:
        row["t_mono_ns"] -= 6_500_000_000
    for row in rows[45:]:
        row["t_mono_ns"] += 990_000_000  # less than a second: the same run


@rule("coarse-odd", "a row whose t_mono_ns does not fit keeps the second that it states",
      COARSE, 40.0, 13.4, 0.0)  # fmt: skip
def _(it: EditableEpisode) -> None:
    rows = list(it.of("netflow"))
    rows[4]["t_mono_ns"] = -1
    rows[9]["t_mono_ns"] = None
    rows[11]["t_mono_ns"] += 0.5
    del rows[13]["t_mono_ns"]
    for i, row in enumerate(rows[16:40]):
        row["t_wall_ns"] -= NS_PER_S * (i % 5 == 2)


# --- lines


@rule("repeated", "lines that are equal byte for byte count once")
def _(it: EditableEpisode) -> None:
    for source in SOURCES:
        rows = it.rows[source]
        it.rows[source] = [
            twin for i, row in enumerate(rows) for twin in [row] * (1 + (i % 3 == 0))
        ]
    # equal values in another line: not the same row
    row = it.nearest("netflow", 6.0)
    place = it.rows["netflow"].index(row)
    it.rows["netflow"][place:place] = [{**row, "note": "again"}] * 2


@rule("malformed", "a line that is no JSON object or has no integer t_wall_ns is left out")
def _(it: EditableEpisode) -> None:
    bad: list[bytes] = [
        b"\n", b"  \t\r\n", b"{\n", b"[1,2]\n", b"null\n", b"{}\n", b'"text"\n', b"{]}\n",
        b'{"t_wall_ns":1.5}\n', b'{"t_wall_ns":true}\n', b'{"t_wall_ns":"%d"}\n' % it.origin,
        b'{"t_wall_ns":9223372036854775808}\n', b'{"t_wall_ns":01}\n', b'{"t_wall_ns":1e18}\n',
        b'{"t_wall_ns":%d,}\n' % (it.origin + 1), b'{"t_wall_ns":%d} x\n' % (it.origin + 2),
        b'{"t_wall_ns" %d}\n' % (it.origin + 3), b'{"t_wall_ns":%d\n' % (it.origin + 4),
        b'{"t_wall_ns":-}\n', b'{"t_wall_ns":%d,"rss_bytes":nul}\n' % (it.origin + 5),
        b"\xff\xfe\n", b'{"t_wall_ns":%d,"rss_bytes":1.}\n' % (it.origin + 6), b"{\"t_wall_ns\":\n",
        b'{"t_wall_ns":%d,"rss_bytes":1e}\n' % (it.origin + 7), b'{"a"}\n', b'{"a":1 "b":2}\n',
        b'{"t_wall_ns":%d,"rss_bytes":.5}\n' % (it.origin + 8), b'{"a":"\x01"}\n', b'{"a\n',
        b'{"t_wall_ns":%d,"rss_bytes":+5}\n' % (it.origin + 9), b'{"a":tru}\n', b'{"a":1}}\n',
    ]  # fmt: skip
    for source in SOURCES:
        for i, line in enumerate(bad):
            it.rows[source].insert(3 * i % len(it.rows[source]), line)
    for i, row in enumerate(it.of("guest")):
        if i % 10 == 0:
            row["source"] = "host_proc"  # named, and used
        elif i % 10 == 1:
            row["available_in_deployment"] = 1
        elif i % 10 == 2:
            row.pop("t_mono_ns")


@rule("json", "a row is what the standard library reads in its line")
def _(it: EditableEpisode) -> None:
    """Every spelling of JSON that a scanner may read otherwise."""
    spellings = (
        "{v}", "{v}.0", "{v}e0", "{v}E+2", "{v}00e-2", "{v}.125", "-{v}", "-{v}.5e1", "-0", "-0.0",
        "{v}123456789012345678", "0.{v}", "{v}.000000000000000001", "1e-30", "1e22", "1e23",
        "{v}e5", "9007199254740993", "9007199254740992.0", "0", "0e5", "0.1e-22",
        "18446744073709551616",
        "1.7976931348623157e308", "1e400", "-1e-400", "123456789012345678", "0.1234567890123456789",
        "9223372036854775807", "-9223372036854775808", "9223372036854775808", "4.35e-2", "1e0005",
    )  # fmt: skip
    layouts = (
        '{{"t_mono_ns":{m},"t_wall_ns":{t},"source":"host_proc","available_in_deployment":false,{f}}}',
        ' {{ "t_wall_ns" : {t} ,\t"t_mono_ns" : {m},"source":"host_proc",{f},'
        '"available_in_deployment":true }} \r',
        '{{"extra":"a,b}}{{","more":null,{f},"t_wall_ns":{t},"t_mono_ns":{m},"source":"host_proc",'
        '"available_in_deployment":false,"unknown":[{{"rss_bytes":1}}]}}',
        '{{"rss_bytes":77,{f},"t_wall_ns":5,"t_wall_ns":{t},"t_mono_ns":{m},"source":"host\\u005fproc",'
        '"available_in_deployment":false}}',
        '{{"nested":{{"rss_bytes":1}},"e":{{}},"\\u0072ss_bytes":3,{f},"t_wall_ns":{t},"t_mono_ns":{m},'
        '"source":"ho\u0073t_proc","available_in_deployment":false,"note":"\u00fc"}}',
        '{{"x1":1,"x2":2,"x3":true,"x4":false,"x5":"","x6":-1.5e-3,{f},"t_mono_ns":{m},'
        '"t_wall_ns":{t},"source":"other","available_in_deployment":false,"rss_byte":9,"rss_bytess":8}}',
    )
    names = ("rss_bytes", "minor_faults", "vcpu_run_ns", "cpu_user_jiffies", "io_rchar_bytes")
    rows: list[Row | bytes] = []
    for i, row in enumerate(it.of("proc")):
        said = [spellings[(i * 5 + j) % len(spellings)].format(v=i + j + 1)
                for j, _ in enumerate(names)]  # fmt: skip
        fields = [f'"{n}":{text}' for n, text in zip(names, said, strict=True)]
        others = [f'"{n}":{v}' for n, v in row.items()
                  if n[:2] != "t_" and n not in (*_ENVELOPE, *names)]  # fmt: skip
        if i % 7 == 3:
            fields.reverse()
        line = layouts[i % len(layouts)].format(
            m=row["t_mono_ns"], t=row["t_wall_ns"], f=",".join(fields + others)
        )
        rows.append(line.encode() + b"\n")
    it.rows["proc"] = rows
    for i, qmp in enumerate(it.of("qmp")):  # a counter that falls is missing: here it must not
        qmp["balloon_free_bytes"] = -(1 << i % 60) if i % 2 else (i + 1) / 7
    last = it.rows["qmp"][-1]
    it.rows["qmp"][-1] = _line(last)[:-1]  # no newline at the end of the file


@rule("many-keys", "a key of a row counts wherever it stands, whatever stands around it")
def _(it: EditableEpisode) -> None:
    for i, row in enumerate(list(it.of("guest"))):
        items = list(row.items())
        keep = items[:4] if i % 2 else items[2:4] + items[:2]
        rest = items[4:]
        more = [(f"other_{i * 3 + k}", k) for k in range(3)] if i < 40 else []
        turned = rest[i % len(rest) :] + rest[: i % len(rest)]
        row.clear()
        row.update(keep[:2] + turned[:5] + more + keep[2:] + turned[5:])


# --- windows, labels, statistics


@rule("fewest-bins", "a statistic of fewer than 10 bins is missing")
def _(it: EditableEpisode) -> None:
    for i, row in enumerate(it.of("guest", 0.0)):
        second = it.at(row)
        if not 3.0 <= second < 3.95:
            row["load_1m"] = None
        if not 3.0 <= second < 3.95 - 0.1:
            row["procs_running"] = None
        if not 4.0 <= second < 5.15:
            row["forks"] = None
        if not 4.0 <= second < 5.05:
            row["interrupts"] = None
        if i != 60:
            row["anon_bytes"] = None
    for i, row in enumerate(it.of("netflow")):
        row["rst_in"] = None if i % 2 else 5


@rule("labels", "a window has the phase of the latest label at or before its centre",
      FINE, 44.0, 20.4, 0.0)  # fmt: skip
def _(it: EditableEpisode) -> None:
    """On the centre, just after it, twice at one time, repeated, out of order, malformed."""
    phases = (
        (5_000_000_000, "armed"), (10_000_000_001, "infecting"), (12_000_000_000, "dormant"),
        (12_000_000_000, "infected_running"), (7_250_000_000, "clean"), (8_000_000_000, "clean"),
        (15_050_000_000, "dormant"), (16_000_000_000, "infecting"), (17_049_999_999, "clean"),
    )  # fmt: skip
    first = {**it.first_label, "phase": "clean"}
    it.labels = [{**first, "t_wall_ns": it.origin + ns, "phase": p} for ns, p in phases]
    it.labels[4:4] = [b"\n", b" \t\n", b"[]\n", b"{\n"]
    it.labels += [first, {"phase": "armed"}, {**first, "phase": 3}, {**first, "t_wall_ns": 1.5}]


@rule("onset", "an attack begins with its earliest infecting or infected_running label")
def _(it: EditableEpisode) -> None:
    first = {**it.first_label, "phase": "armed"}
    at = ((0, "armed"), (9_000_000_007, "infecting"), (3_000_000_001, "infected_running"),
          (3_000_000_001, "dormant"), (6_000_000_003, "infected_running"))  # fmt: skip
    it.labels = [{**first, "t_wall_ns": it.origin + ns, "phase": phase} for ns, phase in at]


@rule("jobs", "a window's job is the one that overlaps it longest", FINE, 44.0, 30.4, 0.0)
def _(it: EditableEpisode) -> None:
    marks = (
        (6.0, "end", "sync"), (3.5, "start", "backup"), (14.0, "end", "backup"),
        (9.0, "start", "update"), (21.0, "end", "update"), (9.0, "start", "build"),
        (21.0, "end", "build"), (15.0, "start", "index"), (15.5, "start", "index"),
        (16.0, "end", "index"), (26.0, "start", "report"), (29.0, "start", "backup"),
    )  # fmt: skip
    it.events = [
        {"t_wall_ns": it.origin + round(s * NS_PER_S), "event": f"benign_job_{w}", "job": name}
        for s, w, name in marks
    ]
    it.events[3:3] = [b"\n", b"null\n"]
    it.events += [{"t_wall_ns": 1.5, "event": "benign_job_start", "job": "sync"},
                  {"t_wall_ns": it.origin, "event": "benign_job_start", "job": ""},
                  {"t_wall_ns": it.origin, "event": "benign_job_pause", "job": "sync"}]  # fmt: skip
    for source in SOURCES:
        it.rows[source] = it.rows[source][::9]


@rule("short", "only whole windows count", FINE, 44.0, 10.3, 0.0)
def _(it: EditableEpisode) -> None:
    for source in POLLED:
        it.drop(source, 9.9, 99.0)
        it.move(max(it.of(source), key=it.at), 10 * NS_PER_S - 1 - 50_000_000 * (source != "qmp"))


@rule("whole", "a grid that ends on a bin's edge has that bin", FINE, 44.0, 15.3, 0.0)
def _(it: EditableEpisode) -> None:
    for source in POLLED:
        it.drop(source, 14.9, 99.0)
        it.move(max(it.of(source), key=it.at), 15 * NS_PER_S - 50_000_000 * (source != "qmp"))


@rule("before-label", "an episode that ends before its first label has no bins")
def _(it: EditableEpisode) -> None:
    it.labels = [{**it.first_label, "t_wall_ns": it.origin + 13 * NS_PER_S}]


@rule("steady", "std, slope and the share of zeros over values that are alike")
def _(it: EditableEpisode) -> None:
    for i, row in enumerate(it.of("guest")):
        row["load_1m"] = 0.0 if i % 3 else -2.5
        row["procs_blocked"] = 3
        row["procs_running"] = i % 2
        row["anon_bytes"] = -i
        row["mem_available_bytes"] = 10**9 - 1000 * (i % 10)


@rule("horizon", "a baseline is the median over the last 12 windows, this one included",
      FINE, 12.0, 86.0, 0.0)  # fmt: skip
def _(it: EditableEpisode) -> None:
    for source in POLLED:
        it.rows[source] = it.rows[source][::8]
    for row in it.of("guest", 20.0, 52.0):  # a value that comes and goes: fewer to take from
        row["load_1m"] = None
    for row in it.of("proc", 0.0, 40.0):
        row["rss_bytes"] = None
    it.drop("qmp", 26.0, 99.0)
