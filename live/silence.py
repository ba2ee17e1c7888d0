"""Silence: the one place that says when it begins and what an event says of it.

A *source* is silent when it is ``QUIET_S`` behind the others. A *machine* is silent when no row of
it has come for ``QUIET_S``: its scorer says so at once, and then every stride. A *scorer* says
something every ``WORD_S``, so the hub takes a host of which it heard nothing for ``UNHEARD_S`` for
silent.

A silent machine is an alarm, whoever notices. An event of silence is about the whole span since the
machine was last heard, and silence lasts until the next window that has a phase.
"""

from __future__ import annotations

from typing import Any

QUIET_S = 5
WORD_S = 5  # the stride of windows
UNHEARD_S = QUIET_S + 3 * WORD_S  # three words in sequence are missing, and some


def silence(start: float, end: float, standing: str | None, name: str) -> dict[str, Any]:
    """The fields of a ``live_detection`` of a machine of which nothing is known.

    Args:
        start, end: Unix seconds on the machine's clock.
        standing: id of the alarm that stands; it goes on.
        name: id of the alarm that is raised if none stands.
    """
    return {
        "start": start,
        "end": end,
        **dict.fromkeys(
            ("phase", "probabilities", "filtered", "filtered_probabilities", "confidence", "score",
             "unlike", "restarted", "latency_ms")
        ),
        "alarm": "standing" if standing else "raised",
        "alarm_id": standing or name,
        "why": [],
    }  # fmt: skip
