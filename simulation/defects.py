"""Defects that the validator knows: what is done to a good episode for each reason."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from episodes.format import EVENTS_FILE, JUSTIFYING_EVENT, NS_PER_S, SOURCES
from simulation.children import TICK_NS, Content

if TYPE_CHECKING:
    from collections.abc import Callable

Members = dict[str, bytes]
IndexRow = dict[str, Any]

_POLLED = tuple(source.name for source in SOURCES.values() if source.expected_hz)


def _nothing(content: Content) -> None:
    pass


@dataclass(frozen=True)
class Defect:
    """What is done to an episode, at each step of its making."""

    edit: Callable[[Content], None] = _nothing  # before hashes are taken
    spoil: Callable[[Members], Members] = lambda members: members  # after
    folder: Callable[[str], str] = lambda episode_id: episode_id  # in the archive
    link: bool = False
    damage: Callable[[bytes], bytes] = lambda packed: packed
    index: Callable[[IndexRow], list[IndexRow]] = lambda row: [row]


NONE = Defect()


def _other_hash(row: IndexRow) -> IndexRow:
    return row | {"sha256": hashlib.sha256(row["sha256"].encode()).hexdigest()}


def _schema_2(content: Content) -> None:
    content.meta["schema_version"] = 2


def _label_backwards(content: Content) -> None:
    last = content.labels[-1]
    t_ns = last["t_mono_ns"] - NS_PER_S
    content.labels.append(content.moment(t_ns, phase=last["phase"]))


def _last_phase(phase: str) -> Callable[[Content], None]:
    def edit(content: Content) -> None:
        content.labels[-1]["phase"] = phase

    return edit


def _unjustified(content: Content) -> None:
    justifying = JUSTIFYING_EVENT.values()
    content.events = [event for event in content.events if event["event"] not in justifying]
    _last_phase("infected_running")(content)


def _late_event(content: Content) -> None:
    after = content.ended_at_ns - content.started_at_ns + 10 * NS_PER_S
    content.events.append(content.moment(after, event="episode_end"))


def _hour_off(content: Content) -> None:
    for name in _POLLED:
        content.sources[name].column("t_wall_ns")[:] += 3600 * NS_PER_S


def _keep(choose: Callable[[int], Any], *names: str) -> Callable[[Content], None]:
    """Keep some of the rows of sources: ``choose`` gives them from how many there are."""

    def edit(content: Content) -> None:
        for name in names:
            sheet = content.sources[name]
            content.sources[name] = sheet.take(choose(len(sheet)))

    return edit


def _middle_out(n_rows: int) -> Any:
    """All but three seconds in the middle."""
    out = 3 * NS_PER_S // TICK_NS
    return np.r_[: n_rows // 2 - out // 2, n_rows // 2 + out // 2 : n_rows]


def _no_load(content: Content) -> None:
    content.sources["guest"] = content.sources["guest"].without("load_1m")


def _step_back(content: Content) -> None:
    wall = content.sources["guest"].column("t_wall_ns")
    wall[len(wall) // 2 :] -= 3 * NS_PER_S // 2


DEFECTS: dict[str, Defect] = {
    "tar_hash_mismatch": Defect(index=lambda row: [_other_hash(row)]),
    "file_hash_mismatch": Defect(
        spoil=lambda members: members | {EVENTS_FILE: members[EVENTS_FILE] + b"\n"}
    ),
    "unsafe_archive": Defect(link=True),
    "broken_archive": Defect(damage=lambda packed: packed[: len(packed) // 2]),
    "renamed_archive": Defect(
        folder=lambda episode_id: episode_id[:-1] + ("Z" if episode_id[-1] != "Z" else "Y")
    ),
    "schema": Defect(edit=_schema_2),
    "labels_out_of_order": Defect(edit=_label_backwards),
    "unknown_label": Defect(edit=_last_phase("compromised")),
    "failed_label": Defect(edit=_last_phase("failed")),
    "infection_without_event": Defect(edit=_unjustified),
    "outside_episode": Defect(edit=_late_event),
    "no_trusted_clock": Defect(edit=_hour_off),
    "too_short": Defect(),  # a matter of the cut
    "too_few_rows": Defect(edit=_keep(lambda _: slice(20), *SOURCES)),
    "conflicting_contents": Defect(index=lambda row: [row, _other_hash(row)]),
    "listed_file_absent": Defect(
        spoil=lambda members: {n: text for n, text in members.items() if n != SOURCES["proc"].file}
    ),
    "source_absent": Defect(edit=_keep(lambda _: slice(0), "guest")),
    "rows_missing": Defect(edit=_keep(lambda n: np.flatnonzero(np.arange(n) % 3), "qmp")),
    "source_gap": Defect(edit=_keep(_middle_out, "guest")),
    "source_offset": Defect(edit=_keep(lambda _: slice(3 * NS_PER_S // TICK_NS, None), "proc")),
    "field_absent": Defect(edit=_no_load),
    "repeated_rows": Defect(
        edit=_keep(lambda n: np.repeat(np.arange(n), 1 + (np.arange(n) % 30 == 0)), "proc")
    ),
    "clock_step": Defect(edit=_step_back),
    "netflow_absent": Defect(edit=_keep(lambda _: slice(0), "netflow")),
    "not_in_index": Defect(index=lambda _: []),
}
"""By the reason that the validator gives. ``io_error`` and ``unforeseen_error`` are no content."""
