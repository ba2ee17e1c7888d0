"""Drift: what counts as a change, what chance does, and what a batch's checks find."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
from builders import DAY_NS, NS_PER_S, PROFILES, START_NS, StoreBuilder
from held_out import FACTS, PROMOTED, Page, check_schema, render_report, report
from lab import RECIPE, Lab, failure, materialized, new_instance

from champion.history import ChampionEntry, copy_checkpoint, put_in_use, read_champion
from episodes.format import PHASES, SOURCES
from evaluation.documents import (
    BatchDrift,
    DriftCheck,
    DriftReference,
    document_text,
)
from evaluation.drift import (
    CHECKS,
    FAIL,
    MAX_EPISODES,
    WARN,
    bin_edges,
    build_reference,
    chance_limits,
    compare_batch,
    count_bins,
    draw_episodes,
    drift_figures,
    psi,
    severity_of,
)
from evaluation.page import MAX_BATCHES, drift_lines
from evaluation.wording import findings
from models.checkpoint import checkpoint_path
from models.registry import find_variant
from pipelines.partitions import sync_batches
from stages.champion import files_to_copy
from stages.drift import DriftStage, read_drift

CHANNELS = ("guest.forks", "guest.load_1m", "netflow.syn_out")
IDENTITY = {
    "champion": {
        "model": "gbt", "mode": "realistic", "recipe": "time", "checkpoint_id": "c",
        "dataset_version": "d",
    }
}  # fmt: skip


def windows(
    n_episodes: int,
    host: str = "lab-a",
    seed: int = 0,
    n_windows: int = 8,
    shift: float = 0.0,
    **columns: Any,
) -> pl.DataFrame:
    """Windows of episodes that differ from each other more than windows of one do."""
    random = np.random.default_rng([seed, n_episodes])
    n = n_episodes * n_windows
    level = np.repeat(random.normal(size=(n_episodes, len(CHANNELS))), n_windows, axis=0)
    values = level + 0.5 * random.normal(size=(n, len(CHANNELS))) + shift
    values[:, 2] = np.maximum(values[:, 2], 0)  # nothing in half of the windows
    phase = [PHASES[i] for i in random.integers(len(PHASES), size=n)]
    return pl.DataFrame(
        {
            "episode_id": np.repeat([f"{host}{seed}E{i:03}" for i in range(n_episodes)], n_windows),
            "host_id": [host] * n,
            "label": phase,
            "predicted": phase,
            "seen_in_training": [False] * n,
            **{f"coverage_{s}": np.ones(n) for s in SOURCES},
            **{f"{c}.mean": values[:, i] for i, c in enumerate(CHANNELS)},
        }
    ).with_columns(**columns)


def verdicts(host: str = "lab-a", **counts: int) -> pl.DataFrame:
    said = [verdict for verdict, n in counts.items() for _ in range(n)]
    return pl.DataFrame({"host_id": [host] * len(said), "verdict": said})


def learned(rows: pl.DataFrame | None = None) -> DriftReference:
    rows = windows(60) if rows is None else rows
    judged = [verdicts(host, accepted=54, rejected=6) for host in rows["host_id"].unique()]
    value = build_reference(rows, rows, pl.concat(judged), CHANNELS, 0)
    check_schema(value.model_dump(mode="json"))
    return DriftReference.model_validate_json(document_text(value))


LEARNED = learned()


def compared(
    rows: pl.DataFrame, judged: Sequence[str] = ("accepted",) * 27 + ("rejected",) * 3, **other: Any
) -> BatchDrift:
    arguments = {"host": "lab-a", "trained": LEARNED} | other
    document = compare_batch("lab-a.day", windows=rows, verdicts=judged, identity=IDENTITY,
                             **arguments)  # fmt: skip
    check_schema(document.model_dump(mode="json"))
    return document


def severities(document: BatchDrift) -> dict[str, str]:
    return {check.name: check.severity for check in document.checks}


def check_of(document: BatchDrift, name: str) -> DriftCheck:
    return next(check for check in document.checks if check.name == name)


def changed(check: DriftCheck) -> list[str]:
    """The rows that do not pass."""
    return [row.name for row in check.rows if row.severity != "ok"]


def notes(document: BatchDrift) -> list[tuple[str, dict[str, Any]]]:
    return [(note.code, dict(note.numbers)) for note in document.notes]


# --- the index


def test_psi_by_hand() -> None:
    p, q = (10.5 / 31, 20.5 / 31), (30.5 / 41, 10.5 / 41)
    expected = sum((b - a) * log(b / a) for a, b in zip(p, q, strict=True))
    assert psi(np.array([10, 20]), np.array([30, 10])) == pytest.approx(expected)
    assert psi(np.array([7, 7, 7]), np.array([7, 7, 7])) == 0
    assert np.isfinite(psi(np.array([10, 0]), np.array([0, 10])))


def test_bins_that_are_none_count_for_nothing() -> None:
    bins = np.array([True, True, False])
    with_padding = psi(np.array([10, 20, 0]), np.array([30, 10, 0]), bins)
    assert with_padding == pytest.approx(psi(np.array([10, 20]), np.array([30, 10])))


def test_bins_are_deciles_of_training() -> None:
    values = np.arange(1.0, 101.0)
    edges = bin_edges(values, 18)
    assert edges[:9].tolist() == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert np.isinf(edges[9:]).all()
    counts = count_bins(values[:, None], edges[None], np.zeros(100, dtype=np.int64), 1)
    assert counts[0, 0, :10].tolist() == [10] * 10


def test_a_channel_that_hardly_ever_moves_is_seen_to_move_either_way() -> None:
    edges = bin_edges(np.zeros(50), 18)[None]
    values = np.array([[-1.0], [0.0], [0.0], [2.0], [np.nan]])
    counts = count_bins(values, edges, np.zeros(5, dtype=np.int64), 1)
    assert counts[0, 0, :3].tolist() == [1, 2, 1]
    assert counts.sum() == 4


def test_chance_is_the_bias_that_theory_gives_where_windows_are_independent() -> None:
    """One window an episode: about (bins - 1)(1/N + 1/M) on average (Yurdakul 2018)."""
    training = windows(200, n_windows=1)
    rows = check_of(
        compared(windows(40, n_windows=1, seed=1), trained=learned(training)), "channels"
    ).rows
    assert rows[0].expected == pytest.approx(9 * (1 / 200 + 1 / 40), rel=0.15)


def test_chance_knows_that_windows_of_an_episode_are_alike() -> None:
    rows = check_of(compared(windows(5, n_windows=8, seed=1)), "channels").rows
    as_if_independent = 9 * (1 / 480 + 1 / 40)
    assert (rows[0].expected or 0) > 2 * as_if_independent


def test_chance_holds_for_all_channels_at_once() -> None:
    null = np.random.default_rng(0).exponential(size=(4000, 40))
    expected, chance = chance_limits(null)
    other = np.random.default_rng(1).exponential(size=(4000, 40))
    assert (other > chance).any(axis=1).mean() == pytest.approx(0.05, abs=0.02)
    assert expected == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("value", "chance", "severity"),
    [
        (0.09, 0.0, "ok"), (WARN, 0.0, "warn"), (0.24, 0.0, "warn"), (FAIL, 0.0, "fail"),
        (0.9, 1.0, "ok"), (float("nan"), 0.0, "ok"),
    ],
)  # fmt: skip
def test_severity(value: float, chance: float, severity: str) -> None:
    assert severity_of(value, chance) == severity


# --- a batch


def test_more_of_the_same_passes() -> None:
    flagged = [compared(windows(30, seed=seed)).severity != "ok" for seed in range(1, 21)]
    assert sum(flagged) <= 3


def test_a_shift_fails_and_names_the_channel() -> None:
    rows = windows(30, seed=1).with_columns(pl.col("guest.load_1m.mean") + 3)
    document = compared(rows)
    assert severities(document) == dict.fromkeys(CHECKS, "ok") | {"channels": "fail"}
    check = check_of(document, "channels")
    assert changed(check) == ["guest.load_1m"]
    assert document.severity == "fail"
    value, chance = check.rows[1].value, check.rows[1].chance
    assert findings(check) == [
        f"guest.load_1m: PSI {value:.2f}, above the {chance:.2f} that chance explains."
    ]


def test_a_host_is_compared_with_itself() -> None:
    both = pl.concat([windows(40), windows(40, "lab-b", shift=4.0)])
    document = compared(windows(30, "lab-b", seed=1, shift=4.0), host="lab-b",
                        trained=learned(both))  # fmt: skip
    assert document.severity == "ok"
    assert dict(document.compared_with) == {"hosts": "lab-b", "episodes": 40, "windows": 320}
    unknown = compared(windows(30, "lab-d", seed=1, shift=9.0), host="lab-d", trained=learned(both))
    assert severities(unknown)["channels"] == "fail"
    assert unknown.compared_with.episodes == 80
    assert [(note.code, note.about) for note in unknown.notes] == [("unknown_host", "lab-d")]


def test_a_missing_source_is_noticed() -> None:
    rows = windows(30, seed=1, coverage_netflow=pl.lit(0.0)).with_columns(
        pl.lit(float("nan")).alias("netflow.syn_out.mean")
    )
    document = compared(rows)
    assert severities(document)["coverage"] == severities(document)["missing"] == "fail"
    assert findings(check_of(document, "coverage")) == [
        "netflow covers 0% of the windows' time, 100% in training."
    ]
    assert findings(check_of(document, "missing")) == [
        "netflow.syn_out is missing in 100% of the windows, 0% in training."
    ]
    assert check_of(document, "channels").rows[2].value is None


def test_more_coverage_is_no_loss() -> None:
    half = learned(windows(60, coverage_qmp=pl.lit(0.5)))
    assert compared(windows(30, seed=1), trained=half).severity == "ok"


def test_missing_values_are_in_no_bin() -> None:
    rows = windows(30, seed=1)
    holes = pl.when(pl.int_range(pl.len()) % 2 == 0).then(float("nan"))
    with_holes = rows.with_columns(
        holes.otherwise(pl.col("guest.forks.mean")).alias("guest.forks.mean")
    )
    document = compared(with_holes)
    assert severities(document)["channels"] == "ok"
    assert severities(document)["missing"] == "fail"


def test_rejected_episodes_are_noticed() -> None:
    document = compared(windows(30, seed=1), ["accepted"] * 15 + ["rejected"] * 15)
    check = check_of(document, "verdicts")
    assert check.severity == "fail"
    assert check.value is not None
    assert check.chance is not None
    assert check.value > check.chance
    assert [row.batch for row in check.rows] == [0.5, 0, 0.5, 0]
    assert drift_figures(document)["usable_share"] == 0.5


def test_another_mix_of_phases_is_noticed() -> None:
    rows = windows(30, seed=1, predicted=pl.lit("infecting"))
    check = check_of(compared(rows), "class_mix")
    assert check.severity == "fail"
    (text,) = findings(check)
    assert text.endswith("Largest change: infecting, 19% in training, 100% in the batch.")


def test_a_batch_without_a_usable_window_fails() -> None:
    document = compared(windows(1)[:0], ["errored"] * 4)
    assert document.severity == "fail"
    assert (document.episodes, check_of(document, "channels").rows) == (0, [])
    assert findings(check_of(document, "channels")) == ["The batch has no usable window."]
    assert drift_figures(document)["windows"] == 0


def test_too_little_training_judges_nothing() -> None:
    document = compared(windows(30, seed=1, shift=9.0), trained=learned(windows(4)))
    assert document.severity == "ok"
    assert changed(check_of(document, "channels"))
    assert notes(document) == [("too_little_training", {"episodes": 4, "needed": 5})]
    assert not any(findings(check) for check in document.checks)


def test_what_was_trained_on_has_a_note() -> None:
    document = compared(windows(30, seed=1, seen_in_training=pl.lit(True)))
    assert notes(document) == [("seen_in_training", {"seen": 30, "episodes": 30})]


def test_a_large_host_is_sampled() -> None:
    many = windows(MAX_EPISODES + 50, n_windows=1)
    assert draw_episodes(many, 0)["episode_id"].n_unique() == MAX_EPISODES
    assert draw_episodes(many, 0).equals(draw_episodes(many, 0))
    assert learned(many).groups["lab-a"].episodes == MAX_EPISODES


def test_the_page_has_a_line_a_batch_newest_day_first() -> None:
    good, bad = compared(windows(30, seed=1)), compared(windows(30, seed=1, shift=5.0))
    documents = [
        good.model_copy(update={"batch": "lab-a.2026-11-20"}),
        bad.model_copy(update={"batch": "lab-a.2026-11-21"}),
        good.model_copy(update={"batch": "lab-b.2026-11-21", "host": "lab-b"}),
    ]
    section = drift_lines(documents)
    assert [line["batch"] for line in section] == [
        "lab-a.2026-11-21", "lab-b.2026-11-21", "lab-a.2026-11-20",
    ]  # fmt: skip
    assert [check["name"] for check in section[0]["checks"]] == list(CHECKS)
    channels = section[0]["checks"][1]
    assert channels["severity"] == "fail"
    assert channels["value"] == drift_figures(bad)["psi_largest"] > FAIL
    texts = findings(check_of(bad, "channels"))
    assert len(texts) == 3

    facts = FACTS | PROMOTED | {"not_compared": 1}
    text = Page(render_report([report()], facts, [], documents)).inside("drift")
    assert "3 batches compared with the training data of gbt_realistic: 1 with strong" in text
    assert "1 batch was ingested before this champion was promoted" in text
    assert all(sentence in text for sentence in texts)
    assert text.index("lab-b.2026-11-21") < text.index("lab-a.2026-11-20")


def test_the_page_shows_the_newest_batches_and_counts_the_others() -> None:
    bad = compared(windows(30, seed=1, shift=5.0))
    days = [f"lab-a.2026-{month:02}-{day:02}" for month in range(1, 5) for day in range(1, 29)]
    documents = [bad.model_copy(update={"batch": day}) for day in days]
    facts = FACTS | PROMOTED | {"not_compared": 0}
    text = Page(render_report([report()], facts, [], documents)).inside("drift")
    older = len(days) - MAX_BATCHES
    assert (
        f"The newest {MAX_BATCHES} are shown. Of the {older} older ones, {older} show drift."
        in text
    )
    assert days[-1] in text
    assert days[0] not in text


def test_the_page_says_what_is_missing_to_compare() -> None:
    nobody = Page(render_report([report()], FACTS)).inside("drift")
    assert "There was no champion when this page was made" in nobody
    facts = FACTS | PROMOTED
    nothing = Page(render_report([report()], facts)).inside("drift")
    assert "No batch has been compared with gbt_realistic." in nothing


def test_a_reference_has_the_form_that_kept_champions_have() -> None:
    value = learned().model_dump()
    assert list(value) == ["schema", "channels", "sources", "phases", "verdicts", "groups"]
    assert value["schema"] == "phasewatch.reference/1"
    assert list(value["groups"]["lab-a"]) == [
        "episodes", "windows", "coverage", "missing", "edges", "counts", "predicted", "labelled",
        "verdicts",
    ]  # fmt: skip


# --- in Dagster


def test_a_new_batch_is_compared_as_it_is_ingested(
    trained: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First without a champion, then with one; the new host's netflow collector does not run."""
    artifacts = shutil.copytree(trained.artifacts, tmp_path / "artifacts")
    which = find_variant("gbt", "realistic")
    store = StoreBuilder(tmp_path / "store")
    for profile in PROFILES[:3] * 2:
        store.add("lab-d", profile=profile, without=("netflow",), start_ns=START_NS + DAY_NS
                  + len(store.added) * 600 * NS_PER_S)  # fmt: skip
    with new_instance(tmp_path / "home") as instance:
        lab = Lab(store, artifacts, instance, trained.settings)
        (batch,) = sync_batches(instance, lab.workspace).stale
        result = lab.execute("ingest", batch)
        assert result.success, failure(result)
        assert materialized(result)["drift"]["severity"] == "not compared"
        checks = evaluations(result)
        assert checks.keys() == {f"{name}_as_in_training" for name in CHECKS}
        assert all(check.passed for check in checks.values())
        assert not (lab.workspace.artifacts_path / "drift" / batch).exists()

        monkeypatch.setattr("stages.champion.SERVED_RECIPE", RECIPE)
        folder = lab.workspace.champion_folder
        path = checkpoint_path(trained.workspace.checkpoint_folder(RECIPE), which)
        files = files_to_copy(trained.project, RECIPE, which, serves=True).files
        kept = copy_checkpoint(folder, path, files)
        reign = ChampionEntry(0, "promoted", "gbt", "realistic", RECIPE, {RECIPE: kept}, "", "", "",
                              {}, None)  # fmt: skip
        put_in_use(folder, reign, replaces=None)
        result = lab.execute("ingest", batch, only=[dg.AssetKey("drift")])
        assert result.success, failure(result)
        said = materialized(result)["drift"]
        assert said["severity"] == "fail"
        assert said["coverage_netflow"] == 0
        assert said["share_degraded"] == 1
        assert isinstance(said["psi_largest"], float)
        checks = evaluations(result)
        coverage = checks["coverage_as_in_training"]
        assert not coverage.passed
        assert coverage.severity == dg.AssetCheckSeverity.ERROR
        assert "netflow covers 0% of the windows' time" in (coverage.description or "")
        records = coverage.metadata["table"].records
        assert [record.data["name"] for record in records] == list(SOURCES)
        assert not checks["verdicts_as_in_training"].passed
        document = read_drift(lab.project.artifact("drift", batch))
        assert document.champion.checkpoint_id == kept
        assert [(note.code, note.about) for note in document.notes] == [("unknown_host", "lab-d")]
        assert DriftStage.documents(lab.project) == [document]
        assert lab.project.champion == read_champion(folder)


def evaluations(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    return {
        check.check_name: check
        for check in result.get_asset_check_evaluations()
        if check.asset_key == dg.AssetKey("drift")
    }
