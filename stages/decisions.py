"""What the hub's log says: alarms on live machines, and what operators answered.

It is only counted, and its decisions are made again from the rows in the store.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from episodes.format import episode_time_ms
from episodes.validation import validate
from evaluation.decisions import AnyRecord, DecisionRecord, Tally, log_files, read_log, tally
from features.files import file_sha256, fingerprint
from live.scorer import Event, LiveScorer
from live.sources import ReplaySource
from stages.manifest import Draft, Manifest
from stages.stage import Artifacts, FactTable, FolderStage, Progress, StageOutput
from stages.status import Reason

if TYPE_CHECKING:
    from episodes.store import StoredEpisode
    from live.bundle import Bundle
    from stages.project import Project
    from stages.workspace import Workspace


class DecisionsStage(FolderStage):
    """Counts the log of decisions, which the hub writes and nothing else changes.

    No other stage trains or tests on it.
    """

    name = "decisions"
    version = "1"
    partition = ""
    job = "decisions"
    automatic = False
    docs = "hub.md"

    outputs = (
        StageOutput(
            name,
            "Alarms that scorers raised on machines, and how many of those that operators answered "
            "were true. Never used for training or test.",
            group="serve",
            kinds=frozenset({"json"}),
        ),
    )

    def fingerprint(self, project: Project, key: str) -> str:
        files = log_files(project.workspace.decisions_folder)
        return fingerprint(
            {"stage": self.version, "log": {path.name: file_sha256(path) for path in files}}
        )

    def stale_reason(self, project: Project, key: str, manifest: Manifest) -> Reason:
        return Reason("log")

    def remedy(self, key: str) -> str:
        return "dagster job execute -m pipelines.definitions -j decisions"

    def write(
        self, project: Project, key: str, staged: Draft, progress: Progress
    ) -> dict[str, Any]:
        counted = read_tally(project.workspace)
        staged.new_file("tally", ".json").write_text(
            counted.model_dump_json(indent=1) + "\n", encoding="utf-8"
        )
        return {}

    def facts(self, project: Project, output: str, artifact: Manifest) -> Mapping[str, Any]:
        counted = Tally.model_validate_json(artifact.path("tally").read_bytes())
        return {
            **counted.model_dump(exclude={"by_model", "unreadable"}),
            "unreadable": len(counted.unreadable),
            "precision": counted.precision,
            "by_model": FactTable(
                [{**row.model_dump(), "precision": row.precision} for row in counted.by_model]
            ),
        }

    def summary(self, project: Project, key: str, artifacts: Artifacts) -> str:
        counted = Tally.model_validate_json(artifacts[self.name].path("tally").read_bytes())
        return f"{counted.answered} of {counted.alarms} alarms answered, {counted.true} true"


def read_tally(workspace: Workspace) -> Tally:
    """The log, counted as it is now."""
    return tally(read_log(workspace.decisions_folder))


# --- made again


COMPARED = (
    "start", "end", "phase", "probabilities", "filtered", "filtered_probabilities", "confidence",
    "score", "threshold", "alarm", "unlike", "coverage", "silent", "why", "restarted",
)  # fmt: skip
"""Of a decision what must come out as it is in the log; names and times of its making need not."""
SINCE = ("input_digest", "contract")
"""The same, where a log has it: older ones do not."""


@dataclass
class ReplayResult:
    """Decisions of a log that were made again."""

    identical: int = 0
    different: list[str] = field(default_factory=list)  # where in the log, and what
    left_out: Counter[str] = field(default_factory=Counter)  # why -> how many


class LogReplay:
    """Makes decisions again from the rows in the store, and compares them to the last digit.

    Decisions by another bundle, on silence, and on rows that the store does not have are left out,
    and so is what is no decision. Each is counted.
    """

    def __init__(self, project: Project, bundle: Bundle):
        self.result = ReplayResult()
        self._recordings = _RescoredEpisodes(project, bundle)

    def take(self, where: str, record: AnyRecord) -> None:
        """Make a line of the log again, if it is a decision."""
        if not isinstance(record, DecisionRecord):
            self.result.left_out["not a decision"] += 1
            return
        event = record.event
        again = self._recordings.event(event)
        if isinstance(again, str):
            self.result.left_out[again] += 1
            return
        off = [name for name in COMPARED if event[name] != again.get(name)]
        off += [n for n in SINCE if event.get(n) is not None and event[n] != again.get(n)]
        if off:
            self.result.different.append(f"{where}: {', '.join(off)}")
        else:
            self.result.identical += 1


class _RescoredEpisodes:
    """The windows of recordings as a bundle scores them, each recording once."""

    def __init__(self, project: Project, bundle: Bundle):
        self._project, self._bundle = project, bundle
        self._events: dict[tuple[str, str], dict[float, Event] | str] = {}
        self._of_host: dict[str, list[StoredEpisode]] = {}  # in order of time, as ids are
        self._by_id: dict[str, StoredEpisode] = {}
        for stored in sorted(project.listing.episodes, key=lambda each: each.episode_id):
            self._of_host.setdefault(stored.host_id, []).append(stored)
            self._by_id[stored.episode_id] = stored

    def event(self, said: Mapping[str, Any]) -> Event | str:
        """The same window again, or why it cannot be had."""
        if said.get("phase") is None:
            return "silence"
        if said.get("bundle") != self._bundle.id:
            return "made by another bundle"
        stored = self._stored(said)
        if stored is None:
            return "rows are not in the store"
        key = stored.host_id, stored.episode_id
        if key not in self._events:
            self._events[key] = self._scored(stored)
        events = self._events[key]
        if isinstance(events, str):
            return events
        return events.get(said["start"], "its windows began elsewhere")

    def _stored(self, said: Mapping[str, Any]) -> StoredEpisode | None:
        """The recording that was replayed, or the one of this host that was under way."""
        if said.get("replay_of"):
            return self._by_id.get(str(said["replay_of"]))
        every = self._of_host.get(str(said["host"]), [])
        n_earlier = bisect_right(
            every, 1000 * said["end"], key=lambda each: episode_time_ms(each.episode_id)
        )
        return every[n_earlier - 1] if n_earlier else None

    def _scored(self, stored: StoredEpisode) -> dict[float, Event] | str:
        workspace = self._project.workspace
        record, episode = validate(stored, workspace.validation, workspace.layout.fields)
        if episode is None or not record.usable:
            return "its recording is not usable"
        source = ReplaySource(episode.members, 0.0)
        scorer = LiveScorer(
            self._bundle, stored.host_id, "again", origin_ns=source.origin_ns(),
            replay_of=stored.episode_id,
        )  # fmt: skip
        made: list[Event] = []
        while (rows := source.read()) is not None:
            for name, lines in rows:
                made += scorer.push(name, lines)
        made += scorer.close()
        return {event["start"]: event for event in made}
