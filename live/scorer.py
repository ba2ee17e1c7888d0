"""Rows in, events out: what a bundle says about one machine, window by window.

An event is the JSON object ``live_detection`` of ``hub/events.py``. It is made here without that
module, because a device has no pydantic; a test holds the two together.
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from episodes.format import SOURCES
from live.silence import QUIET_S, silence_fields
from live.sources import DEPLOYABLE
from live.stream import LiveWindow, LiveWindows
from models.alarm import RunningAlarmRule
from models.base import check_finite
from models.likeness import ALPHA, RunningLikeness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from live.bundle import Bundle

TOP = 3  # channels that are named for an alarm
_DIGITS = 6  # of a probability

Event = dict[str, Any]
AlarmState = Literal["none", "raised", "standing", "cleared"]


class LiveScorer:
    """Scores the rows of one machine as they arrive.

    Args:
        host: name of the machine, as its events carry it.
        session: name of this run; windows count from its start.
        origin_ns: see ``LiveWindows``.
        replay_of: the recording that is replayed; None: the rows are live.
    """

    def __init__(
        self,
        bundle: Bundle,
        host: str,
        session: str,
        *,
        origin_ns: int | None = None,
        replay_of: str | None = None,
    ):
        self.bundle = bundle
        self.windows = LiveWindows(bundle.layout, origin_ns)
        self._about = {
            "v": 1,
            "type": "live_detection",
            "origin": f"bundle {bundle.id[:12]}, checkpoint {bundle.head['checkpoint_id'][:12]}",
            "host": host,
            "model": bundle.variant,
            "bundle": bundle.id,
            "session": session,
            "source": "live" if replay_of is None else "replay",
            "replay_of": replay_of,
            "threshold": bundle.rule.threshold,
            "contract": bundle.input_contract_hash,
        }
        self._host, self._session = host, session
        self._live = replay_of is None
        self._alarm_id: str | None = None
        self._silence_id: str | None = None  # of the alarm that silence has raised
        self._began_s = time.time()
        self._heard = time.monotonic()  # when a row came that was later than those before
        self._newest_s: float | None = None
        self._told = 0.0  # when silence was last told; 0: not silent
        self._begin()

    def _begin(self) -> None:
        self._follower = RunningAlarmRule(self.bundle.rule)
        self._likeness = RunningLikeness(self.bundle.likeness) if self.bundle.likeness else None

    def push(self, source: str, lines: bytes) -> Iterator[Event]:
        """Take lines of one source; yields an event per window that they finish."""
        received = time.perf_counter()
        for window in self.windows.push(source, lines):
            yield self._event(window, received)
        # a line that is no row, is repeated or does not go on in time says nothing of the machine
        if self.windows.newest_s != self._newest_s:
            self._newest_s = self.windows.newest_s
            self._heard, self._told = time.monotonic(), 0.0

    def close(self) -> Iterator[Event]:
        """The events of windows that are whole if no further row comes."""
        received = time.perf_counter()
        for window in self.windows.close():
            yield self._event(window, received)

    def tick(self) -> Iterator[Event]:
        """Say that nothing new has come for ``QUIET_S``: at once, then every stride. Live only."""
        now = time.monotonic()
        stride_s = self.bundle.layout.window.stride_ms / 1000
        if not self._live or now - self._heard < QUIET_S or now - self._told < stride_s:
            return
        self._told = now
        since = self.windows.newest_s or self._began_s
        silent = [self._host, *DEPLOYABLE]
        yield self._silence(
            silent, self.windows.number, since, since + now - self._heard,
            data_at=self.windows.newest_s,
        )  # fmt: skip

    def _event(self, window: LiveWindow, received: float) -> Event:
        bundle, phases = self.bundle, self.bundle.layout.phases
        if window.restarted and self.windows.past == 1:
            self._begin()  # the past was forgotten: filter and likeness begin anew
        seen = [s for s in DEPLOYABLE if window.coverage[s] > 0]
        behind = set(self.windows.silent(DEPLOYABLE)).difference(seen)
        absent = {s for s in DEPLOYABLE if SOURCES[s].expected_hz}.difference(seen)
        silent = sorted(behind | absent)
        if not seen:
            place = _place(window, bundle.layout.window.length_ms)
            return self._silence(
                silent or list(DEPLOYABLE), *place.values(), data_at=_made_at(window)
            )
        X = bundle.inputs(window)
        (proba,) = check_finite(
            bundle.runtime.proba(X), f"{bundle.variant}, window {window.number}"
        )
        filtered, score, alarm = self._follower.push(proba)
        p = self._likeness.push(bundle.likeness_inputs(window)) if self._likeness else None
        state = self._alarm_state(alarm, window.number)
        if state == "none" and self._silence_id:
            state = "cleared"
        event = self._about | {
            "at": time.time(),
            "data_at": _made_at(window),
            **_place(window, bundle.layout.window.length_ms),
            "phase": phases[int(proba.argmax())],
            "probabilities": _shares(phases, proba),
            "filtered": phases[int(filtered.argmax())],
            "filtered_probabilities": _shares(phases, filtered),
            "confidence": round(float(filtered.max()), _DIGITS),
            "score": round(min(score, 1.0), _DIGITS),
            "alarm": state,
            "alarm_id": self._alarm_id or (self._silence_id if state == "cleared" else None),
            "unlike": None if p is None else bool(p <= ALPHA),
            "coverage": {s: round(window.coverage[s], 4) for s in DEPLOYABLE},
            "silent": silent,
            "why": self._why(X[0]),
            "restarted": window.restarted or None,
            "latency_ms": round(1000 * (time.perf_counter() - received), 3),
            "input_digest": hashlib.sha256(X.tobytes()).hexdigest(),
        }
        self._silence_id = None
        if state == "cleared":
            self._alarm_id = None
        return event

    def _alarm_state(self, alarm: bool, number: int) -> AlarmState:
        stood = self._alarm_id is not None
        if alarm and not stood:
            self._alarm_id = f"{self._host}-{self._session}-{number}"
            return "raised"
        if alarm:
            return "standing"
        return "cleared" if stood else "none"

    def _why(self, x: NDArray[np.float32]) -> list[dict[str, Any]]:
        """The channels that argue most for an alarm in a window with these inputs."""
        bundle = self.bundle
        found = bundle.runtime.arguments(x, bundle.channel, bundle.infected)
        names = bundle.layout.channel_names
        return [
            {"channel": names[i], "contribution": round(float(found[i]), 4)}
            for i in np.argsort(-found)[:TOP]
            if found[i] > 0
        ]

    def _silence(
        self, silent: list[str], number: int, start: float, end: float, *, data_at: float | None
    ) -> Event:
        """An event that says that nothing is known of the machine; an alarm that stands, stands."""
        said = silence_fields(
            start, end, self._alarm_id or self._silence_id,
            f"silent-{self._host}-{self._session}-{number}",
        )  # fmt: skip
        if self._alarm_id is None:
            self._silence_id = said["alarm_id"]
        return self._about | said | {
            "at": time.time(),
            "data_at": data_at,
            "window": number,
            "coverage": dict.fromkeys(DEPLOYABLE, 0.0),
            "silent": silent,
        }  # fmt: skip

    # --- state, for a restart

    def state(self) -> dict[str, NDArray[Any]]:
        """What a restarted scorer of the same bundle needs to go on, as arrays."""
        state = self.windows.state()
        state["bundle"] = np.array(self.bundle.id)
        state["alarm"] = np.array([self._alarm_id or "", self._silence_id or "", self._session])
        state["host"] = np.array(self._host)
        if self._follower.state is not None:
            state["filter"] = self._follower.state
            state["stands"] = np.array(self._follower.alarm)
        if self._likeness is not None:
            state["unlike"] = np.array([self._likeness.highest, *self._likeness.recent])
        return state

    def resume(self, state: dict[str, NDArray[Any]]) -> bool:
        """Go on from ``state`` if it is recent, of this bundle and host.

        Returns:
            Whether it resumed.
        """
        about = [str(state.get(name)) for name in ("bundle", "host")]
        if about != [self.bundle.id, self._host] or not self.windows.resume(state, time.time_ns()):
            return False
        alarm_id, silence_id, self._session = map(str, state["alarm"])
        self._about["session"] = self._session
        self._alarm_id, self._silence_id = alarm_id or None, silence_id or None
        if "filter" in state:
            self._follower.state = state["filter"]
            self._follower.alarm = bool(state["stands"])
        if self._likeness is not None and "unlike" in state:
            self._likeness.highest, *self._likeness.recent = state["unlike"].tolist()
        self._newest_s = self.windows.newest_s
        return True


def _place(window: LiveWindow, length_ms: int) -> dict[str, Any]:
    start = window.start_ns / 1e9
    return {"window": window.number, "start": start, "end": start + length_ms / 1000}


def _made_at(window: LiveWindow) -> float | None:
    """When a window's last row was recorded; of a replay, too."""
    return None if window.last_ns is None else window.last_ns / 1e9


def _shares(phases: tuple[str, ...], proba: NDArray) -> dict[str, float]:
    return {phase: round(float(p), _DIGITS) for phase, p in zip(phases, proba, strict=True)}
