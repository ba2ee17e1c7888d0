"""Silence: the one place that says when it begins and what an event says of it.

A *source* is silent when it is ``QUIET_S`` behind the others. A *machine* is silent when no row of
it has come for ``QUIET_S``: its scorer says so at once, and then every stride. A *scorer* says
something every ``EVENT_INTERVAL_S``, so the hub takes a host of which it heard nothing for
``SCORER_SILENT_S`` for silent.

A silent machine is an alarm, whoever notices. An event of silence is about the whole span since the
machine was last heard, and silence lasts until the next window that has a phase.
"""

from __future__ import annotations

from typing import Any

QUIET_S = 5
EVENT_INTERVAL_S = 5  # the stride of windows
SCORER_SILENT_S = QUIET_S + 3 * EVENT_INTERVAL_S  # three events in sequence are missing, and some


def silence_fields(
    start: float, end: float, alarm_id: str | None, new_alarm_id: str
) -> dict[str, Any]:
    """The fields of a ``live_detection`` of a machine of which nothing is known.

    Args:
        start, end: Unix seconds on the machine's clock.
        alarm_id: id of the alarm that stands; it goes on.
        new_alarm_id: id of the alarm that is raised if none stands.
    """
    return {
        "start": start,
        "end": end,
        **dict.fromkeys(
            ("phase", "probabilities", "filtered", "filtered_probabilities", "confidence", "score",
             "unlike", "restarted", "latency_ms")
        ),
        "alarm": "standing" if alarm_id else "raised",
        "alarm_id": alarm_id or new_alarm_id,
        "why": [],
    }  # fmt: skip
