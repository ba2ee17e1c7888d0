"""Exclusions: a person's list of what takes no part in datasets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from builders import StoreBuilder
from lab import RECIPE, Lab
from typer.testing import CliRunner, Result

from datasets.exclusions import (
    BY_HAND,
    Exclusion,
    ExclusionError,
    appended,
    parse_exclusions,
    read_exclusions,
)
from datasets.windows import read_dataset
from episodes.environment import MachineError
from pipelines.cli.app import OK, USAGE, app
from stages.evaluation import read_report
from stages.registry import STAGES
from stages.stage import FactTable
from stages.status import StageError

FILE = Path("exclusions.yaml")
ENTRY: dict[str, Any] = {"episode": "E1", "reason": "wrong label", "who": "mira"}


def text_of(*entries: Mapping[str, Any]) -> str:
    return yaml.safe_dump([dict(entry) for entry in entries])


# --- parsing


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "[]\n"])
def test_an_empty_file_excludes_nothing(text: str) -> None:
    assert parse_exclusions(text, FILE) == []


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"reason": None}, "entry 2: reason is missing"),
        ({"reason": "  "}, "reason must not be empty, got '  '"),
        ({"who": None}, "who"),
        ({"episode": None}, "episode"),
        ({"episode": 7}, "episode"),
        ({"from": 1.0}, "from"),
        ({"from_s": -1.0}, "from_s must be at least 0, got -1"),
        ({"to_s": -1.0}, "to_s must be at least 0, got -1"),
        ({"from_s": "5"}, "from_s must be a number, got '5'"),
        ({"from_s": True}, "from_s must be a number, got True"),
        ({"to_s": float("nan")}, "to_s"),
        ({"to_s": float("inf")}, "to_s"),
        ({"from_s": 9.0, "to_s": 9.0}, "to_s must be above from_s (9), got 9"),
        ({"from_s": 9.0, "to_s": 4.0}, "to_s must be above from_s (9), got 4"),
        ({"to_s": 0.0}, "to_s must be above from_s (0), got 0"),
        ({"episode": "E9"}, "the store has no episode 'E9'"),
    ],
    ids=str,
)
def test_a_faulty_entry_is_named_with_its_file(changed: dict[str, Any], says: str) -> None:
    faulty = {n: v for n, v in (ENTRY | changed).items() if v is not None}
    with pytest.raises(ExclusionError) as told:
        parse_exclusions(text_of(ENTRY, faulty), FILE, ["E1", "E2"])
    assert str(told.value).startswith("exclusions.yaml: entry 2: ")
    assert says in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["episode: E1", "- E1", "- [", "3"])
def test_what_is_no_list_of_entries_is_refused(text: str) -> None:
    with pytest.raises(ExclusionError, match=r"exclusions\.yaml"):
        parse_exclusions(text, FILE)


def test_a_file_that_the_settings_name_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ExclusionError, match="cannot be read"):
        read_exclusions(tmp_path / "exclusions.yaml")
    assert read_exclusions(None) == []


@pytest.mark.parametrize(
    "before",
    ["", "# by mira\n- {episode: E2, reason: noise, who: mira}  # see notes", "[]\n", "# later\n"],
)
def test_an_entry_is_added_to_what_a_person_wrote(before: str) -> None:
    after = appended(before, ENTRY, FILE, ["E1", "E2"])
    assert parse_exclusions(after, FILE)[:-1] == parse_exclusions(before, FILE)
    assert parse_exclusions(after, FILE)[-1] == Exclusion(**ENTRY)
    if before != "[]\n":
        assert after.startswith(before)


@pytest.mark.parametrize(
    ("listed", "added", "refused"),
    [
        ({}, {}, True),
        ({}, {"from_s": 4.0, "to_s": 5.0}, True),
        ({"from_s": 4.0, "to_s": 9.0}, {"from_s": 4.0, "to_s": 9.0}, True),
        ({"from_s": 4.0, "to_s": 9.0}, {"from_s": 5.0, "to_s": 8.0}, True),
        ({"to_s": 9.0}, {"from_s": 5.0, "to_s": 8.0}, True),
        ({"from_s": 4.0}, {"from_s": 5.0}, True),
        ({"from_s": 4.0, "to_s": 9.0}, {"from_s": 5.0, "to_s": 10.0}, False),
        ({"from_s": 4.0, "to_s": 9.0}, {"from_s": 3.0, "to_s": 8.0}, False),
        ({"from_s": 4.0, "to_s": 9.0}, {"from_s": 4.0}, False),
        ({"from_s": 4.0}, {}, False),
        ({"to_s": 9.0}, {}, False),
        ({}, {"episode": "E2"}, False),
        ({"episode": "e1"}, {}, True),
    ],
    ids=str,
)
def test_what_is_excluded_already_is_refused(
    listed: dict[str, Any], added: dict[str, Any], refused: bool
) -> None:
    before, known = text_of(ENTRY | {"episode": "E3"}, ENTRY | listed), ["E1", "E2", "E3"]
    if refused:
        with pytest.raises(ExclusionError, match=r"exclusions\.yaml: entry 2 .* by mira"):
            appended(before, ENTRY | added, FILE, known)
    else:
        assert len(parse_exclusions(appended(before, ENTRY | added, FILE, known), FILE)) == 3


@pytest.mark.parametrize(
    ("span", "kept"),
    [
        # windows of 10 s at 0, 5, 10, 15, 20
        ({}, []),
        ({"from_s": 10.0, "to_s": 12.0}, [0, 15, 20]),
        ({"from_s": 10.0, "to_s": 10.5}, [0, 15, 20]),
        ({"from_s": 15.0}, [0, 5]),
        ({"to_s": 5.0}, [5, 10, 15, 20]),
        ({"to_s": 5.1}, [10, 15, 20]),
        ({"from_s": 30.0}, [0, 5, 10, 15, 20]),
    ],
    ids=str,
)
def test_a_span_excludes_the_windows_that_overlap_it(
    span: dict[str, float], kept: list[float]
) -> None:
    table = pl.DataFrame(
        {"episode_id": ["E1"] * 5 + ["E2"], "start_s": [0.0, 5.0, 10.0, 15.0, 20.0, 0.0]}
    )
    covered = Exclusion(**ENTRY, **span).covers(10.0)
    left = table.filter(~covered)
    assert left.filter(pl.col("episode_id") == "E1")["start_s"].to_list() == kept
    assert left.filter(pl.col("episode_id") == "E2").height == 1


# --- the dataset and its reports


def exclude(lab: Lab, *words: object) -> Result:
    paths = ["--store", str(lab.store.root), "--artifacts", str(lab.artifacts)]
    return CliRunner().invoke(app, ["exclude", *map(str, words), *paths])


def windows(lab: Lab) -> pl.DataFrame:
    return read_dataset(lab.project.existing("datasets", RECIPE))


def test_exactly_what_is_meant_takes_no_part(retrained: Lab) -> None:
    before = windows(retrained)
    first = before.filter(pl.col("split") == "train")["episode_id"].unique().sort().to_list()
    whole, part = first[:2]
    assert retrained.project.status(STAGES["datasets"], RECIPE).current
    assert exclude(retrained, whole, "--reason", "wrong label", "--who", "mira").exit_code == OK
    span = ("--from", 12, "--to", 14)
    assert exclude(retrained, part, *span, "--reason", "clock", "--who", "jo").exit_code == OK
    assert sorted(path.name for path in retrained.artifacts.glob("*.yaml")) == ["exclusions.yaml"]

    project = retrained.project
    stale = {
        (status.stage, status.key, status.code)
        for stage in STAGES.values()
        for status in project.statuses(stage)
        if status.code not in ("not_made", "no_champion", "current") and status.available
    }
    assert stale == {("datasets", RECIPE, "exclusions")}
    assert not project.make(STAGES["datasets"], RECIPE).reused

    after, dataset = windows(retrained), retrained.project.existing("datasets", RECIPE)
    gone = before.join(after, on=["episode_id", "window"], how="anti")
    meant = (pl.col("episode_id") == whole) | (
        (pl.col("episode_id") == part) & pl.col("window").is_in([1, 2])  # 5-15 s and 10-20 s
    )
    assert gone.equals(before.filter(meant))
    assert after.equals(before.filter(~meant))
    assert dataset.facts["windows_excluded_by_hand"] == len(gone)
    assert [entry["windows"] for entry in dataset.facts["exclusions"]] == [len(gone) - 2, 2]
    assert dataset.facts["excluded"][BY_HAND] == 1
    facts = STAGES["datasets"].facts(retrained.project, "datasets", dataset)
    assert isinstance(facts["exclusions"], FactTable)
    assert retrained.project.status(STAGES["datasets"], RECIPE).current
    path = retrained.workspace.exclusions_file
    path.write_text(path.read_text().replace("reason: ", "reason: in other words, "))
    assert retrained.project.status(STAGES["datasets"], RECIPE).current


def test_an_exclusion_of_what_no_dataset_has_changes_none(retrained: Lab) -> None:
    short = retrained.store.add(host="lab-a", duration_s=12).episode_id
    retrained.ingest()
    retrained.project.make(STAGES["datasets"], RECIPE)
    told = exclude(retrained, short, "--reason", "too short", "--json")
    assert (told.exit_code, json.loads(told.stdout)["changes_datasets"]) == (OK, False)
    assert retrained.project.status(STAGES["datasets"], RECIPE).current
    known = windows(retrained)["episode_id"][0]
    told = exclude(retrained, known, "--reason", "wrong label", "--json")
    assert json.loads(told.stdout)["changes_datasets"]
    assert retrained.project.status(STAGES["datasets"], RECIPE).code == "exclusions"


def test_every_report_lists_what_was_excluded(retrained: Lab) -> None:
    episode = windows(retrained).filter(pl.col("split") == "test")["episode_id"][0]
    assert exclude(retrained, episode, "--to", 3, "--reason", "boot", "--who", "jo").exit_code == OK
    project, shown = retrained.project, "eval_reports/knn_realistic"
    kinds = ("datasets", "checkpoints", "held_out_predictions", "likeness", "alarm_rules")
    for stage in project.stages.values():
        if stage.name == shown or stage.name.partition("/")[0] in kinds:
            project.make(stage, RECIPE)
    project.make("report")
    manifest = project.existing(shown, RECIPE)
    [entry] = read_report(manifest).exclusions
    assert entry.model_dump() == {
        "episode": episode, "from_s": None, "to_s": 3.0, "reason": "boot", "who": "jo",
        "windows": 1,
    }  # fmt: skip
    sentence = f"Episode {episode} to 3 s excluded by jo (1 window): boot"
    assert sentence in manifest.path("card").read_text()
    assert sentence in retrained.workspace.report_page.read_text()


def test_a_faulty_file_is_refused_where_the_dataset_is_made(retrained: Lab) -> None:
    path = retrained.workspace.exclusions_file
    path.write_text(text_of(ENTRY))
    assert retrained.project.status(STAGES["datasets"], RECIPE).code == "exclusions"
    with pytest.raises(StageError, match=r"exclusions\.yaml: entry 1: the store has no episode"):
        retrained.project.make(STAGES["datasets"], RECIPE)
    path.write_text("episode: [")
    assert retrained.project.status(STAGES["datasets"], RECIPE).code == "exclusions"
    with pytest.raises(StageError, match=r"exclusions\.yaml is not YAML \(line 1, column 11\)$"):
        retrained.project.make(STAGES["datasets"], RECIPE)
    paths = ["--store", str(retrained.store.root), "--artifacts", str(retrained.artifacts)]
    told = json.loads(CliRunner().invoke(app, ["doctor", "--json", *paths]).stdout)
    assert f"{path} is not YAML (line 1, column 11)" in [p["problem"] for p in told["problems"]]
    path.write_text("# nothing\n")
    assert retrained.project.status(STAGES["datasets"], RECIPE).current


def test_the_command_refuses_what_the_dataset_would(trained: Lab, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    path = tmp_path / "kept" / "mine.yaml"
    settings = {"exclusions": str(path)}
    config.write_text(json.dumps({"resources": {"workspace": {"config": settings}}}))
    episode = trained.store.added[0].episode_id
    named = ("--config", config)
    outside = Path(shutil.copy(trained.store.added[0].path, tmp_path))
    other = StoreBuilder(tmp_path / "other").add(duration_s=40)
    for words in (
        ("nowhere", "--reason", "x"),
        (outside, "--reason", "x"),
        (other.path, "--reason", "x"),
        (other.path.with_name("missing.tar.zst"), "--reason", "x"),
        (episode, "--reason", "x", "--from", 5000, "--to", 6000),
        (episode, "--reason", "x", "--from", 40),  # its length
        (episode, "--reason", " "),
        (episode, "--reason", "x", "--from", -1),
        (episode, "--reason", "x", "--from", 5, "--to", 4),
        (episode, "--reason", "x", "--to", 41.5),
    ):
        told = exclude(trained, *words, *named)
        assert (told.exit_code, path.exists()) == (USAGE, False), told.output
    told = exclude(trained, episode, "--reason", "x", *named, "--json")
    assert told.exit_code == OK
    said = json.loads(told.stdout)
    assert (said["path"], said["entries"]) == (str(path), 1)
    [entry] = read_exclusions(path)
    assert (entry.episode, entry.whole, bool(entry.who)) == (episode, True, True)
    written = path.read_bytes()
    for words in ((episode,), (trained.store.added[0].path,), (episode, "--from", 4, "--to", 5)):
        told = exclude(trained, *words, "--reason", "y", *named)
        assert (told.exit_code, path.read_bytes()) == (USAGE, written), told.output


def test_an_episode_is_named_by_its_path_or_by_its_id_in_lower_case(
    trained: Lab, tmp_path: Path
) -> None:
    first, second = trained.store.added[:2]
    there = ("--reason", "x", "--artifacts", tmp_path)
    for name in (first.path, second.episode_id.lower()):
        told = CliRunner().invoke(
            app, ["exclude", *map(str, (name, *there)), "--store", str(trained.store.root)]
        )
        assert (told.exit_code, told.stderr) == (OK, "")
    entries = read_exclusions(tmp_path / "exclusions.yaml")
    assert [entry.episode for entry in entries] == [first.episode_id, second.episode_id]


def test_it_is_said_that_an_episode_is_rejected_anyway(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path / "store")
    short = store.add(duration_s=12).episode_id
    words = ("exclude", short, "--reason", "x", "--store", store.root, "--artifacts", tmp_path)
    told = CliRunner().invoke(app, [*map(str, words)])
    assert (told.exit_code, "[too_short]" in told.stderr) == (OK, True)
    assert len(read_exclusions(tmp_path / "exclusions.yaml")) == 1


def test_an_episode_that_cannot_be_read_may_be_excluded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: Any) -> Any:
        raise MachineError("planted")

    store = StoreBuilder(tmp_path / "store")
    episode = store.add(duration_s=12).episode_id
    monkeypatch.setattr("episodes.validation.validate", unreadable)
    words = ("exclude", episode, "--reason", "x", "--store", store.root, "--artifacts", tmp_path)
    told = CliRunner().invoke(app, [*map(str, words)])
    assert (told.exit_code, "planted" in told.stderr) == (OK, True)
    assert len(read_exclusions(tmp_path / "exclusions.yaml")) == 1
