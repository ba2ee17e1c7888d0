"""Statuses and the project, without Dagster; and a stage that is added in one declaration."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from builders import DAY_NS, PROFILES, START_NS, StoreBuilder
from lab import RECIPE, Lab, failure, materialized, put_in_use
from typer.testing import CliRunner

import features.registry
import stages.batch
from champion.history import REFERENCE_FILE, TRAINING_FILE, checkpoint_copy_path, read_champion
from config.signing import new_key
from datasets.splits import RECIPES
from evaluation.decisions import AnswerRecord
from evaluation.drift import THRESHOLDS
from features.files import file_sha256, fingerprint
from features.registry import LAYOUT
from models.checkpoint import checkpoint_path
from models.registry import Variant
from pipelines.automation import new_batches
from pipelines.cli.app import FAILED, app
from pipelines.cli.execution import _execute
from pipelines.graph import build_defs
from resources.workspace import resource_of
from stages.champion import restore_reference
from stages.checkpoints import code_commit
from stages.drift import DriftStage
from stages.manifest import _FILE_NAME, draft, read_manifest, write_manifest
from stages.project import MakeResult, Project
from stages.registry import STAGES
from stages.report_page import comparable_documents
from stages.scoring import scorer_of
from stages.stage import FolderStage, StageOutput
from stages.status import REASONS, Reason, StageError, Status
from stages.workspace import checked_workspace

ROOT = Path(__file__).parent.parent


def codes(project: Project, stage: str) -> dict[str, str]:
    """Key -> code of a stage's statuses."""
    return {status.key: status.code for status in project.statuses(STAGES[stage])}


# --- statuses


@pytest.mark.parametrize("code", REASONS)
def test_every_reason_has_a_sentence(code: str) -> None:
    details = {
        "outputs": ["tensor_shards"], "store": "/a/store", "problem": "a file is gone",
        "changed": 2, "batches": ["lab-a.day"], "inputs": ["datasets"], "found": ["lab-a"],
        "contents": ["champion"],
    }  # fmt: skip
    status = Status("datasets", "host", Reason(code, details), "phasewatch run --recipe host")
    assert "{" not in status.line
    assert status.line.startswith("datasets host: ")
    assert status.remedy == "Run: phasewatch run --recipe host"
    assert status.current == (REASONS[code][0] == "current")


BATCH = "lab-a.2026-11-02"


def in_use(lab: Lab, monkeypatch: pytest.MonkeyPatch, *models: str) -> None:
    """Put models in use, one after the other, as if the one trained recipe were served."""
    monkeypatch.setattr("stages.champion.SERVED_RECIPE", RECIPE)
    monkeypatch.setattr("lab.SERVED_RECIPE", RECIPE)
    for model in models:
        put_in_use(lab, model)


def make(lab: Lab, stage: str, key: str, **chosen: Any) -> MakeResult:
    return lab.project.make(STAGES[stage], key, **chosen)


def add_late(lab: Lab, host: str = "lab-a") -> str:
    """An episode arrives; returns its batch."""
    late = lab.store.add(host=host, profile=PROFILES[0], sample=f"{PROFILES[0]}.v0", duration_s=40)
    return lab.project.listing.find(late.episode_id).batch


def lose_sidecar(lab: Lab, _: Any) -> None:
    next(lab.workspace.checkpoint_folder(RECIPE).glob("knn_realistic.*.safetensors")).unlink()


def write_older_report(lab: Lab, _: Any) -> None:
    with draft(lab.workspace.report_page.parent / RECIPE / "knn_realistic") as staged:
        staged.new_file("report", ".json").write_text('{"schema": "phasewatch.eval_report/0"}')
        staged.commit("older", {}, STAGES["eval_reports/knn_realistic"].version)


def raise_version(lab: Lab, monkeypatch: Any) -> None:  # noqa: ARG001
    monkeypatch.setattr(STAGES["comparisons"], "version", "next")


def change_unit(lab: Lab, monkeypatch: Any) -> None:  # noqa: ARG001
    channels = (replace(LAYOUT.channels[0], unit="kB"), *LAYOUT.channels[1:])
    monkeypatch.setattr(features.registry, "LAYOUT", replace(LAYOUT, channels=channels))


def change_replicates(lab: Lab, _: Any) -> None:
    lab.settings = lab.settings | {"report": {"replicates": 150}}


def exclude_an_episode(lab: Lab, _: Any) -> None:
    episode = lab.store.added[0].episode_id
    entry = {"episode": episode, "to_s": 2.0, "reason": "boot", "who": "test"}
    lab.workspace.exclusions_file.write_text(json.dumps([entry]))


def change_policy(lab: Lab, _: Any) -> None:
    lab.settings = lab.settings | {"validation": {"min_rows": 5}}


def ingest_one_output(lab: Lab, _: Any) -> None:
    make(lab, "ingest", add_late(lab), outputs=["tensor_shards"])


def change_store(lab: Lab, _: Any) -> None:
    lab.store = StoreBuilder(lab.store.root.with_name("other"))
    lab.store.populate(profiles=PROFILES[:1], duration_s=40)


def follow_champion(lab: Lab, monkeypatch: Any) -> None:
    in_use(lab, monkeypatch, "knn")
    make(lab, "drift", BATCH)
    in_use(lab, monkeypatch, "gbt")


def lose_hosts(lab: Lab, _: Any) -> None:
    for batch in lab.project.listing.batches:
        if batch != BATCH:
            shutil.rmtree(lab.workspace.batch_folder(batch))


def rewrite_index(lab: Lab, **values: Any) -> None:
    """Only what it says of the episodes counts here."""
    for batch in lab.project.listing.batches:
        index = lab.project.artifacts("ingest", batch)["validation_index"]
        path = index.path("index")
        pl.read_parquet(path).with_columns(
            **{n: pl.lit(v) for n, v in values.items()}
        ).write_parquet(path)
        written = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        write_manifest(replace(index, files={"index": index.files["index"] | written}))


def count_and_answer(lab: Lab, _: Any) -> None:
    make(lab, "decisions", "")
    record = AnswerRecord(at=0.0, alarm_id="a", host="h", verdict=True)
    (lab.workspace.decisions_folder / "2026-11-02.jsonl").write_text(
        record.model_dump_json() + "\n"
    )


def require_signatures(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHASEWATCH_KEYS", str(lab.artifacts.parent / "keys"))
    new_key("lab")
    lab.settings = lab.settings | {"require_signatures": True}


CAUSES: dict[str, tuple[str, str, Callable[[Lab, Any], Any]]] = {
    # code: stage, key, what happened
    "current": ("ingest", BATCH, lambda *_: None),
    "no_champion": ("drift", BATCH, lambda *_: None),
    "not_made": ("datasets", RECIPE, lambda lab, _: shutil.rmtree(lab.artifacts / "datasets")),
    "not_compared": ("drift", BATCH, lambda lab, monkeypatch: in_use(lab, monkeypatch, "gbt")),
    "not_in_store": ("ingest", "lab-z.2026-01-01", lambda *_: None),
    "damaged": ("checkpoints/knn_realistic", RECIPE, lose_sidecar),
    "signature": ("ingest", BATCH, require_signatures),
    "format": ("eval_reports/knn_realistic", RECIPE, write_older_report),
    "version": ("comparisons", RECIPE, raise_version),
    "contract": ("checkpoints/gbt_realistic", RECIPE, change_unit),
    "settings": ("comparisons", RECIPE, change_replicates),
    "policy": ("ingest", BATCH, change_policy),
    "outputs_differ": ("ingest", BATCH, ingest_one_output),
    "episodes": ("ingest", BATCH, lambda lab, _: add_late(lab)),
    "other_store": ("ingest", BATCH, change_store),
    "exclusions": ("datasets", RECIPE, exclude_an_episode),
    "batches_added": (
        "datasets", RECIPE, lambda lab, _: make(lab, "ingest", add_late(lab, "lab-d")),
    ),
    "inputs": ("datasets", RECIPE, lambda lab, _: make(lab, "ingest", add_late(lab))),
    "inputs_missing": (
        "eval_reports/knn_realistic", RECIPE,
        lambda lab, _: shutil.rmtree(lab.artifacts / "likeness"),
    ),
    "checkpoint": ("drift", BATCH, follow_champion),
    "contents": ("report", "", lambda lab, monkeypatch: in_use(lab, monkeypatch, "gbt")),
    "log": ("decisions", "", count_and_answer),
    "single_host": ("checkpoints/gbt_realistic", "host", lose_hosts),
    "single_sample": ("datasets", RECIPE, lambda lab, _: rewrite_index(lab, sample_name="s")),
    "single_session": ("datasets", "session", lambda *_: None),
}  # fmt: skip


def test_every_reason_has_a_cause_here() -> None:
    assert CAUSES.keys() == REASONS.keys()


@pytest.mark.parametrize("code", CAUSES)
def test_a_reason_is_given_and_making_mends_it(
    code: str, retrained: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, key, cause = CAUSES[code]
    stage = STAGES[name]
    cause(retrained, monkeypatch)
    project = retrained.project
    status = project.status(stage, key)
    assert (status.code, status.state) == (code, REASONS[code][0])
    assert "{" not in status.line
    assert status.remedy
    if status.current:
        assert make(retrained, name, key).reused == stage.reusable
        return
    if not status.available:
        with pytest.raises(StageError, match="unavailable"):
            project.make(stage, key)
        assert key not in [due.key for due in project.due(stage.job)]
        return
    if code == "not_in_store":
        with pytest.raises(StageError, match=key):
            project.make(stage, key)
        return
    assert (key in [due.key for due in project.due(stage.job)]) == stage.automatic
    unmade = {"contract": "unit was jiffies/s, is now kB", "inputs_missing": "likeness/realistic"}
    if code in unmade:  # its inputs have to be mended first
        with pytest.raises(StageError, match=unmade[code]):
            project.make(stage, key)
        return
    assert not make(retrained, name, key).reused
    assert retrained.project.status(stage, key, verify=True).current


EVALUATED = {"alarm_rules", "eval_reports", "comparisons", "host_rotation"}
DEPENDS = {
    # setting -> its value, and the stages whose artifacts follow from it
    "seed": (7, {"checkpoints", "likeness", "held_out_predictions", "drift", "host_rotation"}),
    "models": ({"gbt": {"n_rounds": 3}}, {"checkpoints", "host_rotation"}),
    "validation": ({"max_gap_s": 9.0}, {"ingest"}),
    "splits": ({"seed": 4}, {"datasets", "host_rotation"}),
    "report": ({"false_alarms_per_hour": 1.0}, EVALUATED),
    "device": ("cuda", set()),
    "notify": ("true", set()),
}


def test_a_setting_changes_what_follows_from_it_and_nothing_else(retrained: Lab) -> None:
    put_in_use(retrained, "gbt")
    settings = retrained.workspace.model_dump()

    def fingerprints(**changed: Any) -> dict[tuple[str, str], str]:
        project = Project(checked_workspace(settings | changed))
        found = {}
        for stage in project.stages.values():
            for key in project.keys(stage):
                with suppress(StageError):  # its inputs were not made
                    found[stage.name, key] = stage.fingerprint(project, key)
        return found

    def families(names: Iterable[tuple[str, str]]) -> set[str]:
        return {name.partition("/")[0] for name, _ in names}

    before = fingerprints()
    changed = {}
    for setting, (value, _) in DEPENDS.items():
        given = settings[setting] | value if isinstance(value, dict) else value
        after = fingerprints(**{setting: given})
        changed[setting] = families(each for each in before if before[each] != after[each])
    assert changed == {setting: follow for setting, (_, follow) in DEPENDS.items()}
    assert families(before) >= set().union(*changed.values())


def test_every_file_has_a_name_by_which_a_commit_knows_it(retrained: Lab) -> None:
    names = [
        file["name"]
        for path in retrained.artifacts.rglob("manifest.json")
        for file in json.loads(path.read_text())["files"].values()
    ]
    assert len(names) > 50
    odd = {name for name in names if not _FILE_NAME.fullmatch(name)}
    assert odd == {"report.html"}  # written in place, by no commit


def test_a_report_follows_from_the_likeness(retrained: Lab) -> None:
    stage = STAGES["eval_reports/gbt_realistic"]
    before = stage.fingerprint(retrained.project, RECIPE)
    manifest = retrained.project.artifacts("likeness/realistic", RECIPE)["likeness/realistic"]
    write_manifest(replace(manifest, fingerprint="0" * 64))
    assert stage.fingerprint(retrained.project, RECIPE) != before


def test_a_likeness_of_other_data_is_not_used(retrained: Lab) -> None:
    path = checkpoint_path(
        retrained.workspace.checkpoint_folder(RECIPE), Variant("gbt", "realistic")
    )
    assert scorer_of(retrained.project, path).likeness
    manifest = retrained.project.artifacts("likeness/realistic", RECIPE)["likeness/realistic"]
    write_manifest(replace(manifest, facts=manifest.facts | {"dataset_version": "0" * 64}))
    assert scorer_of(retrained.project, path).likeness is None


def test_a_likeness_for_another_layout_is_not_called_other_settings(
    retrained: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = STAGES["likeness/realistic"]
    change_unit(retrained, monkeypatch)
    details = retrained.project.status(stage, RECIPE).reason.details
    assert details == {"inputs": ["the input layout"]}
    monkeypatch.undo()
    retrained.settings = retrained.settings | {"seed": 8}
    assert retrained.project.status(stage, RECIPE).code == "settings"


def test_a_fresh_store_has_everything_to_make(lab: Lab) -> None:
    batches = list(lab.project.listing.batches)
    assert codes(lab.project, "ingest") == dict.fromkeys(batches, "not_made")
    assert set(codes(lab.project, "drift").values()) == {"no_champion"}
    assert [due.key for due in lab.project.due("ingest")] == batches
    assert {due.key for due in lab.project.due("retrain")} == {*RECIPES, ""}
    with pytest.raises(StageError, match="phasewatch run --ingest-only"):
        lab.project.make(STAGES["datasets"], RECIPE)


@pytest.mark.parametrize(
    ("stage", "key", "outputs", "says"),
    [
        ("report", "host", None, "report is made once for the store, got 'host'"),
        ("datasets", None, None, "recipe must be one of .*, got None"),
        ("ingest", "lab-a.2026-11-02", ["shards"], "output of ingest must be one of .*'shards'"),
    ],
)
def test_only_what_a_stage_can_make_is_made(
    ingested: Lab, stage: str, key: Any, outputs: list[str] | None, says: str
) -> None:
    with pytest.raises(StageError, match=says):
        make(ingested, stage, key, outputs=outputs)


def test_what_the_store_cannot_give_is_skipped_and_said(
    ingested: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    project = ingested.project
    assert project.recipes == ["host", "sample", "time"]
    assert {due.key for due in project.due("retrain")} == {"host", "sample", "time", ""}
    codes_ = {s.code for stage in STAGES.values() if stage.partition == "recipe"
              for s in project.statuses(stage, ["session"])}  # fmt: skip
    assert codes_ == {"single_session"}

    result = ingested.execute("retrain", "session")
    assert result.success
    assert materialized(result) == {}

    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    paths = ["--store", str(ingested.store.root), "--artifacts", str(ingested.artifacts)]
    told = CliRunner().invoke(app, ["run", "--recipe", "session", *paths])
    assert told.exit_code == FAILED
    assert "one recording session (2026-11-02)" in told.output
    told = CliRunner().invoke(app, ["doctor", "--json", *paths])
    (line,) = json.loads(told.stdout)["store"]["unavailable"]
    assert line.startswith("recipe session: unavailable: ")


def test_a_second_session_makes_its_recipe_due(ingested: Lab) -> None:
    next_day = START_NS + DAY_NS
    for number, profile in enumerate(PROFILES[:3]):
        ingested.store.add(
            profile=profile, sample=f"{profile}.v0", start_ns=next_day + number * DAY_NS // 100
        )
    ingested.ingest()
    project = ingested.project
    assert "session" in [due.key for due in project.due("retrain")]
    facts = project.make(STAGES["datasets"], "session").artifacts["datasets"].facts
    sessions = {split: side["sessions"] for split, side in facts["splits"].items()}
    assert sessions == {"train": ["2026-11-02"], "val": ["2026-11-02"], "test": ["2026-11-03"]}

    both = {"both": ["2026-11-02", "2026-11-03"]}
    splits = ingested.settings["splits"] | {"sessions": both}
    ingested.settings = ingested.settings | {"splits": splits}
    assert resource_of(ingested.workspace).core.splits.sessions == both
    assert ingested.project.unavailable["session"].details == {"found": ["both"]}


def test_ingest_reports_what_changed(
    ingested: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, *others = ingested.project.listing.batches
    assert set(codes(ingested.project, "ingest").values()) == {"current"}

    ingested.store.add(host=batch.rsplit(".", 1)[0], profile=PROFILES[0], duration_s=40)
    grown = ingested.project
    assert codes(grown, "ingest") == {batch: "episodes"} | dict.fromkeys(others, "current")
    (status,) = grown.statuses(STAGES["ingest"], [batch])
    assert (status.usable, status.reason.details) == (True, {"changed": 1})

    (status,) = ingested.project.statuses(STAGES["ingest"], ["lab-z.2026-01-01"])
    assert (status.code, status.state) == ("not_in_store", "missing")
    assert "phasewatch sync --json lists them" in status.remedy

    other = StoreBuilder(tmp_path / "other")
    other.populate(profiles=PROFILES[:1], duration_s=40)
    elsewhere = Project(ingested.workspace.model_copy(update={"store": str(other.root)}))
    assert set(codes(elsewhere, "ingest").values()) == {"other_store"}

    shard = next(ingested.workspace.batch_folder(others[0]).glob("tensor_shards/*.npy"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert codes(ingested.project, "ingest")[others[0]] == "current"  # of its size it is
    (status,) = ingested.project.statuses(STAGES["ingest"], [others[0]], verify=True)
    assert (status.code, status.remedy) == ("damaged", f"Run: phasewatch run --batch {others[0]}")

    policy = replace(ingested.workspace.validation, min_rows=5)
    stricter = Project(ingested.workspace.model_copy(update={"validation": policy}))
    assert set(codes(stricter, "ingest").values()) == {"policy"}

    channels = (replace(LAYOUT.channels[0], unit="kB"), *LAYOUT.channels[1:])
    monkeypatch.setattr(features.registry, "LAYOUT", replace(LAYOUT, channels=channels))
    (status,) = ingested.project.statuses(STAGES["ingest"], [others[0]])
    assert (status.code, status.usable) == ("contract", False)
    assert status.differences == ["proc.cpu_user_jiffies: unit was jiffies/s, is now kB"]


def test_a_dataset_tells_new_batches_from_changed_ones(retrained: Lab) -> None:
    retrained.store.add(host="lab-d", profile=PROFILES[0], duration_s=40)
    (new,) = retrained.ingest()
    (status,) = retrained.project.statuses(STAGES["datasets"], [RECIPE])
    assert (status.code, status.usable) == ("batches_added", True)
    assert status.reason.details == {"batches": [new]}
    late = retrained.store.add(host="lab-a", profile=PROFILES[0], duration_s=40)
    retrained.ingest()
    (status,) = retrained.project.statuses(STAGES["datasets"], [RECIPE])
    assert (status.code, status.usable) == ("inputs", False)
    batch = retrained.project.listing.find(late.episode_id).batch
    assert status.reason.details == {"inputs": [batch]}


def test_results_stay_when_batches_arrive_and_say_which_they_lack(retrained: Lab) -> None:
    before = comparable_documents(retrained.project)
    assert before.reports
    retrained.store.add(host="lab-d", profile=PROFILES[0], duration_s=40)
    retrained.store.add(host="lab-a", profile=PROFILES[0], duration_s=40)
    retrained.ingest()
    found = comparable_documents(retrained.project)
    assert (found.reports, found.left_out) == (before.reports, before.left_out)
    [dataset] = found.behind
    assert (dataset.stage, dataset.key, dataset.due) == ("datasets", RECIPE, True)
    page = retrained.project.make("report").artifacts["report"].place("page").read_text()
    assert dataset.message in html.unescape(page)


@pytest.mark.parametrize("name", [name for name in STAGES if name != "champion"])
def test_a_raised_version_is_told_from_other_settings(
    name: str, retrained: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is built on what other code made; the champion is a record, not an artifact."""
    stage = STAGES[name]
    in_use(retrained, monkeypatch, "knn")
    key = {"batch": BATCH, "recipe": RECIPE, "": ""}[stage.partition]
    if not retrained.project.status(stage, key).current:
        make(retrained, name, key)
    assert retrained.project.status(stage, key, verify=True).current
    monkeypatch.setattr(stage, "version", "next")
    if name == "ingest":
        monkeypatch.setattr(stages.batch, "VERSION", "next")
    status = retrained.project.status(stage, key)
    assert (status.code, status.usable) == ("version", False)


def test_what_recorded_no_version_was_made_by_other_code(retrained: Lab) -> None:
    change_replicates(retrained, None)
    stage = STAGES["comparisons"]
    assert retrained.project.status(stage, RECIPE).code == "settings"
    manifest = read_manifest(retrained.workspace.report_page.parent / RECIPE / "comparisons")
    assert manifest is not None
    write_manifest(replace(manifest, stage_version=""))
    assert retrained.project.status(stage, RECIPE).code == "version"


def test_drift_is_hashed_and_follows_its_thresholds(
    retrained: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_use(retrained, monkeypatch, "knn")
    make(retrained, "drift", BATCH)
    with monkeypatch.context() as changed:
        other = THRESHOLDS.model_copy(update={"warn": 0.2})
        changed.setattr("stages.drift.THRESHOLDS", other)
        assert codes(retrained.project, "drift")[BATCH] == "settings"
    manifest = read_manifest(retrained.workspace.artifacts_path / "drift" / BATCH)
    assert manifest is not None
    path = manifest.path("drift")
    path.write_bytes(path.read_bytes().replace(b"ok", b"OK", 1))
    status = retrained.project.status(STAGES["drift"], BATCH, verify=True)
    assert (status.code, status.remedy) == ("damaged", "Run: phasewatch run --ingest-only")
    assert DriftStage.documents(retrained.project) == []
    assert not make(retrained, "drift", BATCH).reused
    assert len(DriftStage.documents(retrained.project)) == 1


def reference_path(lab: Lab) -> Path:
    champion = read_champion(lab.workspace.champion_folder)
    assert champion is not None
    return checkpoint_copy_path(lab.workspace.champion_folder, champion).with_name(REFERENCE_FILE)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{")])
def test_a_lost_drift_reference_is_made_again(
    damage: Callable[[Path], Any], retrained: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_use(retrained, monkeypatch, "knn")
    path = reference_path(retrained)
    before = path.read_bytes()
    shutil.rmtree(retrained.artifacts / "datasets")  # a retrain may have replaced it
    damage(path)
    assert make(retrained, "drift", BATCH).artifacts["drift"] is not None
    assert path.read_bytes() == before
    damage(path)
    assert restore_reference(retrained.project) == path
    assert path.read_bytes() == before
    assert restore_reference(retrained.project) is None


def test_a_reference_that_cannot_be_made_again_stops_no_ingest(
    retrained: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_use(retrained, monkeypatch, "knn")
    reference_path(retrained).unlink()
    batch, gone, *_ = retrained.project.listing.batches
    shutil.rmtree(retrained.workspace.batch_folder(gone))
    status = retrained.project.status(STAGES["champion"], "")
    assert (status.code, "phasewatch run --ingest-only" in status.remedy) == ("damaged", True)
    assert "are not ingested" in status.message
    result = retrained.execute("ingest", batch)
    assert result.success, failure(result)
    assert "are not ingested" in materialized(result)["drift"]["why"]
    assert retrained.ingest() == [gone]  # as the remedy says
    assert set(codes(retrained.project, "drift").values()) == {"not_compared", "current"}
    assert retrained.ingest()
    assert set(codes(retrained.project, "drift").values()) == {"current"}


def test_a_lost_list_of_training_episodes_stops_no_ingest(
    retrained: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_use(retrained, monkeypatch, "knn")
    reference_path(retrained).with_name(TRAINING_FILE).unlink()
    result = retrained.execute("ingest", BATCH)
    assert result.success, failure(result)
    assert TRAINING_FILE in materialized(result)["drift"]["why"]


def test_drift_and_page_follow_the_champion(retrained: Lab, monkeypatch: Any) -> None:
    monkeypatch.setattr("stages.champion.SERVED_RECIPE", RECIPE)
    monkeypatch.setattr("lab.SERVED_RECIPE", RECIPE)
    assert codes(retrained.project, "report") == {"": "current"}
    put_in_use(retrained, "gbt")
    assert set(codes(retrained.project, "drift").values()) == {"not_compared"}
    assert codes(retrained.project, "report") == {"": "contents"}
    page = retrained.project.status(STAGES["report"], "")
    assert page.reason.details["contents"] == ["champion"]
    batch = next(iter(retrained.project.listing.batches))
    made = retrained.project.make(STAGES["drift"], batch)
    assert not made.reused
    assert retrained.project.make(STAGES["drift"], batch).reused
    put_in_use(retrained, "knn")
    assert codes(retrained.project, "drift")[batch] == "checkpoint"


def test_a_run_says_that_the_champion_cannot_be_read(
    retrained: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_use(retrained, "gbt")
    pointer = retrained.workspace.champion_folder / "champion.json"
    pointer.write_bytes(pointer.read_bytes()[:700])
    config = tmp_path / "same.yaml"
    config.write_text(json.dumps({"resources": {"workspace": {"config": retrained.settings}}}))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    paths = ["--store", str(retrained.store.root), "--artifacts", str(retrained.artifacts)]
    words = ["run", "--json", "--recipe", RECIPE, "--config", str(config), *paths]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == FAILED
    document = json.loads(told.stdout)
    assert str(pointer) in document["error"]
    assert document["runs"][-1]["made"] == ["report"]  # everything else is done
    page = Path(document["report"]).read_text(encoding="utf-8")
    assert "The champion cannot be read" in page
    assert "There is no champion" not in page


@pytest.mark.parametrize(
    ("job", "key", "outputs"),
    [("retrain", RECIPE, ["datasets", "held_out_predictions"]), ("ingest", BATCH, None)],
)
def test_a_run_counts_its_steps(
    job: str, key: str, outputs: list[str] | None, retrained: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="phasewatch")
    workspace = retrained.workspace
    definitions = build_defs(workspace=workspace)
    ran = _execute(workspace, definitions, job, [key], retrained.instance, outputs)
    assert outputs is None or ran.reused == outputs
    ends = [r.getMessage() for r in caplog.records if getattr(r, "ends_step", False)]
    assert [end.rpartition(", step ")[2] for end in ends] == ["1 of 2", "2 of 2"]


def test_a_rollback_makes_the_page_again_and_nothing_else(
    retrained: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.champion.SERVED_RECIPE", RECIPE)
    monkeypatch.setattr("lab.SERVED_RECIPE", RECIPE)
    put_in_use(retrained, "gbt")
    put_in_use(retrained, "knn")
    config = tmp_path / "same.yaml"
    config.write_text(json.dumps({"resources": {"workspace": {"config": retrained.settings}}}))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PHASEWATCH_CONFIG", str(config))
    monkeypatch.setenv("PHASEWATCH_STORE", str(retrained.store.root))

    def changed(since: float) -> set[str]:
        folder = retrained.artifacts
        return {
            path.relative_to(folder).parts[0]
            for path in folder.rglob("*")
            if path.is_file() and path.stat().st_mtime > since
        } - {"dagster_home"}

    began = max(p.stat().st_mtime for p in retrained.artifacts.rglob("*") if p.is_file())
    words = ["rollback", "--json", "--artifacts", str(retrained.artifacts)]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    document = json.loads(told.stdout)
    assert document["page"] == str(retrained.workspace.report_page)
    assert "Champion: <b>gbt_realistic</b>" in Path(document["page"]).read_text(encoding="utf-8")
    assert codes(retrained.project, "report") == {"": "current"}
    assert changed(began) == {"champion", "reports"}


def test_stages_work_without_dagster(trained: Lab) -> None:
    program = (
        "import sys; sys.modules['dagster'] = None\n"
        "from stages.project import Project\n"
        "from stages.workspace import workspace_from_environment\n"
        "project = Project(workspace_from_environment())\n"
        "stages = [s for s in project.stages.values() if s.automatic]\n"
        "print(sum(status.current for s in stages for status in project.statuses(s)))\n"
    )
    environment = {
        "PHASEWATCH_STORE": str(trained.store.root),
        "PHASEWATCH_ARTIFACTS": str(trained.artifacts),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) >= 3


def test_the_commit_is_that_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed copy is of no known commit, whatever repository it is used in."""
    assert code_commit() != "unknown"
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    words = [
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b.c",
        "commit",
        "-q",
        "--allow-empty",
        "-m",
        "-",
    ]
    subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("config.paths.CLONE", None)
    assert code_commit() == "unknown"


# --- a stage added in one declaration


class Heartbeat(FolderStage):
    """A dummy: one file per batch."""

    name = "heartbeat"
    version = "1"
    partition = "batch"
    job = "ingest"
    docs = "operations.md"
    inputs = ("ingest",)
    outputs = (StageOutput(name, "A dummy.", "ingest", frozenset({"json"})),)

    def folder(self, workspace: Any, key: str) -> Path:
        return workspace.artifacts_path / self.name / key

    def fingerprint(self, project: Project, key: str) -> str:
        return fingerprint([self.version, key])

    def write(self, project: Project, key: str, staged: Any, progress: Any) -> dict[str, Any]:
        staged.new_file("beat", ".json").write_text(json.dumps(key))
        return {"beats": 1}

    def facts(self, project: Project, output: str, artifact: Any) -> dict[str, Any]:
        return dict(artifact.facts)


def materialize(lab: Lab, batch: str, outputs: Collection[str]) -> dg.ExecuteInProcessResult:
    keys = [dg.AssetKey(output) for output in outputs]
    return lab.execute("ingest", batch, only=keys)


def test_a_declared_stage_appears_everywhere(
    ingested: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    batches = list(ingested.project.listing.batches)
    monkeypatch.setitem(STAGES, "heartbeat", Heartbeat())

    definitions = build_defs()
    graph = definitions.resolve_asset_graph()
    job = definitions.resolve_job_def("ingest")
    assert dg.AssetKey("heartbeat") in job.asset_layer.executable_asset_keys
    assert graph.get(dg.AssetKey("heartbeat")).parent_keys == {
        dg.AssetKey(output.name) for output in STAGES["ingest"].outputs
    }

    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    paths = ["--store", str(ingested.store.root), "--artifacts", str(ingested.artifacts)]
    told = json.loads(CliRunner().invoke(app, ["doctor", *paths, "--json"]).stdout)
    assert told["not_current"]["heartbeat"] == [f"{len(batches)} of {len(batches)}: missing"]

    with dg.build_sensor_context(
        instance=ingested.instance, resources={"workspace": resource_of(ingested.workspace)}
    ) as context:
        result = new_batches(context)
    assert isinstance(result, dg.SensorResult)
    assert sorted(str(r.partition_key) for r in result.run_requests or ()) == batches

    made = materialize(ingested, batches[0], ["heartbeat"])
    assert made.success
    assert ingested.recorded("heartbeat", batches[0])["beats"] == 1
    assert codes(ingested.project, "heartbeat")[batches[0]] == "current"
    shutil.rmtree(ingested.artifacts / "heartbeat")
    assert codes(ingested.project, "heartbeat")[batches[0]] == "not_made"
