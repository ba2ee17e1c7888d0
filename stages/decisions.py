"""What the hub's log says: alarms on live machines, and what operators answered. Only counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evaluation.decisions import Tally, log_files, read_log, tally
from features.files import file_sha256, fingerprint
from stages.stage import Artifacts, FolderStage, Output, Progress, Rows
from stages.status import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stages.manifest import Draft, Manifest
    from stages.project import Project
    from stages.workspace import Workspace


class Decisions(FolderStage):
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
        Output(
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

    def why(self, project: Project, key: str, manifest: Manifest) -> Reason:
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
            "by_model": Rows(
                [{**row.model_dump(), "precision": row.precision} for row in counted.by_model]
            ),
        }

    def summary(self, project: Project, key: str, artifacts: Artifacts) -> str:
        counted = Tally.model_validate_json(artifacts[self.name].path("tally").read_bytes())
        return f"{counted.answered} of {counted.alarms} alarms answered, {counted.true} true"


def read_tally(workspace: Workspace) -> Tally:
    """The log, counted as it is now."""
    return tally(read_log(workspace.decisions_folder))
