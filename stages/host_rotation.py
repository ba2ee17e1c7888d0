"""Host rotation: recipe ``host`` with every host held out once, on request."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from datasets.splits import DatasetError
from datasets.windows import examples, inputs
from evaluation.documents import HostRotation, HostTurn, document_text
from evaluation.rotation import host_turn, summarise_turns
from evaluation.scores import prediction_rows
from features.contract import contract_hashes
from features.files import fingerprint
from models.registry import VARIANTS, Variant, find_variant
from stages.alarm_rules import training_phases
from stages.checkpoints import fit_windows
from stages.datasets import (
    exclusions_fingerprint,
    ingested_windows,
    shard_versions,
    split_windows,
)
from stages.stage import Artifacts, FactTable, FolderStage, Progress, Stage, StageOutput
from stages.status import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stages.manifest import Draft, Manifest
    from stages.project import Project

TREES = find_variant("gbt", "realistic")
NETS = [v for v in VARIANTS if v.mode == "realistic" and v.spec.libraries == ("torch",)]


class HostRotationStage(FolderStage):
    """Trains two models once per host, and tests each on the host left out."""

    name = "host_rotation"
    version = "2"
    partition = ""
    job = "host_rotation"
    automatic = False
    pool = "training"
    docs = "evaluation.md"

    inputs = ("ingest", *(f"checkpoints/{variant.name}" for variant in NETS))

    outputs = (
        StageOutput(
            name,
            "Recipe host with every host held out once, for gbt and the net best on validation: "
            "mean, worst and spread beside the one default host.",
            group="evaluate",
            kinds=frozenset({"json"}),
        ),
    )

    def needs(self, project: Project, key: str) -> Iterator[tuple[Stage, str]]:
        """The batches; checkpoints only choose the net, so any that are there will do."""
        for batch in project.listing.batches:
            yield project.stages["ingest"], batch

    def fingerprint(self, project: Project, key: str) -> str:
        workspace = project.workspace
        variants = (TREES, best_net(project))
        return fingerprint(
            {
                "stage": self.version,
                "batches": shard_versions(project),
                "models": {v.name: asdict(workspace.model_config_of(v)) for v in variants},
                "splits": asdict(workspace.splits),
                "report": asdict(workspace.report),
                "seed": workspace.seed,
                "excluded_by_hand": exclusions_fingerprint(project),
                "contracts": dict(contract_hashes(workspace.layout)),
            }
        )

    def stale_reason(self, project: Project, key: str, manifest: Manifest) -> Reason:
        if manifest.facts["batches"] != shard_versions(project):
            return Reason("inputs", {"inputs": ["ingest"]})
        if manifest.facts.get("excluded_by_hand") != exclusions_fingerprint(project):
            return Reason("exclusions")
        return Reason("settings")

    def remedy(self, key: str) -> str:
        return "dagster job execute -m pipelines.definitions -j host_rotation"

    def write(
        self, project: Project, key: str, staged: Draft, progress: Progress
    ) -> dict[str, Any]:
        document = rotate_hosts(project, (TREES, best_net(project)), progress)
        staged.new_file("rotation", ".json").write_text(document_text(document), encoding="utf-8")
        return {
            "batches": shard_versions(project),
            "excluded_by_hand": exclusions_fingerprint(project),
        }

    def facts(self, project: Project, output: str, artifact: Manifest) -> Mapping[str, Any]:
        document = read_rotation(artifact)
        return {
            **{
                f"{spread.metric}_{name}_{model.model}": getattr(spread, name)
                for model in document.models
                for spread in model.spreads
                for name in ("mean", "worst", "spread", "default")
            },
            "default_host": document.default_host,
            "not_held_out": document.not_held_out,
            "turns": FactTable(
                [
                    {"model": model.model, **turn.model_dump()}
                    for model in document.models
                    for turn in model.turns
                ]
            ),
        }

    def summary(self, project: Project, key: str, artifacts: Artifacts) -> str:
        document = read_rotation(artifacts[self.name])
        return "; ".join(
            f"{model.model}: macro F1 {model.spreads[0].mean:.3f} over {len(model.turns)} hosts, "
            f"worst {model.spreads[0].worst:.3f} ({model.spreads[0].worst_host})"
            for model in document.models
        )


def best_net(project: Project) -> Variant:
    """The net with the highest mean validation macro F1 over the recipes that trained them all.

    Raises:
        StageError: there is no such recipe.
    """
    scores = []
    for recipe in project.recipes:
        files = [project.artifact(f"checkpoints/{net.name}", recipe) for net in NETS]
        if all(file is not None and file.header is not None for file in files):
            scores.append([file.val_macro_f1 for file in files])
    if not scores:
        raise StageError("No recipe has a checkpoint of every net. Run: phasewatch run")
    return NETS[int(np.mean(scores, axis=0).argmax())]


def rotate_hosts(
    project: Project, variants: tuple[Variant, ...], progress: Progress
) -> HostRotation:
    """Train each variant once per host and test it on the host left out.

    Raises:
        StageError: the store has one host, or none can be held out.
    """
    workspace = project.workspace
    layout = workspace.layout
    if "host" in project.unavailable:
        raise StageError.of([project.status(project.stages["datasets"], "host")])
    windows, shards = ingested_windows(project)
    hosts = sorted(windows["host_id"].unique())
    turns: dict[Variant, list[HostTurn]] = {variant: [] for variant in variants}
    not_held_out: dict[str, str] = {}
    for done, host in enumerate(hosts):
        try:
            table, _ = split_windows(
                project, windows, "host", replace(workspace.splits, test_host=host)
            )
        except DatasetError as error:
            not_held_out[host] = str(error)
            continue
        held_out = table.filter(pl.col("split") != "train")
        phases = training_phases(table, layout.phases)
        for variant in variants:
            progress(done, len(hosts), f"{variant.model} without {host}")
            training, val = (
                examples(table, shards, side, variant, layout) for side in ("train", "val")
            )
            model = fit_windows(workspace, variant, training, val)
            proba = model.predict_proba(inputs(held_out, shards, variant, layout))
            predictions = prediction_rows(
                held_out, variant.model, variant.mode, f"without {host}", proba, layout.phases
            )
            turns[variant].append(
                host_turn(
                    host, predictions, variant.model, variant.mode, phases, layout.phases,
                    workspace.report, layout.window,
                )
            )  # fmt: skip
    if not any(turns.values()):
        lines = [f"  - {host}: {why}" for host, why in not_held_out.items()]
        raise StageError("\n".join(["No host can be held out:", *lines]))
    default = workspace.splits.test_host
    return HostRotation(
        default_host=default,
        models=[summarise_turns(v.model, v.mode, found, default) for v, found in turns.items()],
        not_held_out=not_held_out,
    )


def read_rotation(manifest: Manifest) -> HostRotation:
    """A rotation as written.

    Raises:
        ValueError: it has another form.
    """
    return HostRotation.model_validate_json(manifest.path("rotation").read_bytes())
