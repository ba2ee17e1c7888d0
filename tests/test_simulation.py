"""Simulated corpora: valid, marked, deterministic, and such that every recipe keeps its sides."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from datasets.splits import RECIPES, SplitPolicy, assign_splits
from episodes.format import NS_PER_S, PHASES, episode_day, episode_time_ms
from episodes.store import list_store
from episodes.validation import VERDICT_OF_REASON, ValidationPolicy, validate
from features.extraction import extract
from features.registry import LAYOUT
from features.shards import read_table
from pipelines.cli.app import OK, USAGE, app
from pipelines.cli.console import log_to_stderr, workspace_of
from simulation.archives import seal, simulate
from simulation.children import make_content
from simulation.corpus import Corpus, CorpusRequest, complete, open_corpus, write_corpus
from simulation.defects import DEFECTS
from simulation.direct import write_shards
from simulation.parents import Parent, ParentId, SimulationError, find_parents, read_parent
from simulation.plan import Child, Part, Plan, host_names
from simulation.sheets import make_sheet
from stages.project import Project
from stages.workspace import Workspace

EMBEDDED = Path(__file__).resolve().parent.parent / "data" / "store"
RECORDED = 8  # episodes that the tests make children of
NOT_MADE = {"io_error", "unforeseen_error"}
quick = settings(deadline=None, max_examples=15, database=None)
PROFILES = [f"p{i}" for i in range(6)]
MADE_UP = tuple(
    ParentId(f"{i:026d}", Path("nowhere"), f"{i}", PROFILES[i % 6], 2 + (i % 24 > 5))
    for i in range(120)
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a few embedded episodes, of every host."""
    root = tmp_path_factory.mktemp("recorded")
    by_host: dict[str, list[Any]] = {}
    for stored in list_store(EMBEDDED).episodes:
        if stored.index_rows and "DEFECT" not in stored.episode_id:
            by_host.setdefault(stored.host_id, []).append(stored)
    chosen = [stored for listed in by_host.values() for stored in listed[: RECORDED // 4]]
    lines = (EMBEDDED / "index.jsonl").read_text().splitlines(keepends=True)
    for stored in chosen:
        path = root / stored.path.relative_to(EMBEDDED)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(stored.path, path)
    ids = {stored.episode_id for stored in chosen}
    kept = [line for line in lines if json.loads(line)["episode_id"] in ids]
    (root / "index.jsonl").write_text("".join(kept))
    return root


@pytest.fixture(scope="module")
def parents(recorded: Path) -> tuple[ParentId, ...]:
    return find_parents(recorded)


def make(folder: Path, recorded: Path, wanted: CorpusRequest, **how: Any) -> Plan:
    corpus = open_corpus(folder, recorded, wanted, append=how.pop("append", False))
    write_corpus(corpus, how.pop("processes", 1), **how)
    return corpus.plan


@pytest.fixture(scope="module")
def store(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every second episode has a defect, and each defect comes once."""
    folder = tmp_path_factory.mktemp("simulated")
    make(folder, recorded, CorpusRequest(2 * len(DEFECTS), 5, hosts=3, defects=0.5))
    return folder


def judged(store: Path) -> dict[str, Any]:
    found = (validate(e, ValidationPolicy(), LAYOUT.fields) for e in list_store(store).episodes)
    return {record.episode_id: (record, episode) for record, episode in found}


@pytest.fixture(scope="module")
def verdicts(store: Path) -> dict[str, Any]:
    return judged(store)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# --- the episodes


def test_an_episode_is_accepted_unless_it_was_given_a_defect(
    store: Path, recorded: Path, verdicts: dict[str, Any]
) -> None:
    plan = open_corpus(store, recorded, CorpusRequest(2 * len(DEFECTS), 5), append=False).plan
    children = list(plan.children(plan.parts[0]))
    found = dict(verdicts)
    assert [child.defect for child in children if child.defect] == list(DEFECTS)
    for child in children:
        record, _ = found.pop(child.episode_id)
        if child.defect is None:
            assert (record.verdict, record.reasons) == ("accepted", ()), record.line
        else:
            assert child.defect in record.reasons, record.line
            assert record.verdict == VERDICT_OF_REASON[child.defect], record.line
    assert found == {}


def test_every_reason_can_be_made_but_those_of_the_machine() -> None:
    assert set(DEFECTS) == set(VERDICT_OF_REASON) - NOT_MADE


def test_an_episode_is_marked_and_names_its_parent(
    store: Path, recorded: Path, verdicts: dict[str, Any]
) -> None:
    plan = open_corpus(store, recorded, CorpusRequest(2 * len(DEFECTS), 5), append=False).plan
    for child in plan.children(plan.parts[0]):
        record, episode = verdicts[child.episode_id]
        if episode is None:  # nothing in it can be read
            continue
        assert record.synthetic
        assert record.parent_episode_id == child.parent.episode_id
        assert (record.host_id, record.sample_name) == (child.host_id, child.sample)
        assert record.started_at_wall_ns == child.started_at_ns
        assert episode_time_ms(child.episode_id) == child.started_at_ns // 1_000_000


def test_hosts_write_netflow_in_both_precisions(verdicts: dict[str, Any]) -> None:
    coarse: dict[str, set[bool]] = {}
    for record, episode in verdicts.values():
        if record.verdict == "accepted":
            times = episode.sources["netflow"].t_wall_ns
            coarse.setdefault(record.host_id, set()).add(bool(np.all(times % NS_PER_S == 0)))
    assert coarse == {"lab-a": {False}, "lab-b": {True}, "lab-c": {False}}


def child_of(parent: ParentId, number: int = 0, **values: Any) -> Child:
    child = Child(
        number=number, episode_id="01M7ZVV20HFQWZ385HM9KXP5BJ", host_id="lab-a", parent=parent,
        sample="s", started_at_ns=1_800_000_000 * NS_PER_S, coarse_netflow=False, defect=None,
    )  # fmt: skip
    return replace(child, **values)


@pytest.fixture(scope="module")
def read(parents: tuple[ParentId, ...]) -> list[tuple[ParentId, Parent]]:
    return [(parent, read_parent(parent)) for parent in parents]


def test_labels_and_events_follow_the_crop_and_the_stretch(
    read: list[tuple[ParentId, Parent]],
) -> None:
    attacked = 0
    for name, parent in read:
        for number in range(5):
            content = make_content(child_of(name, number), parent, seed=0)
            cut = content.meta["simulation"]
            for listed, key in ((content.labels, "phase"), (content.events, "event")):
                expected = [
                    ((t / NS_PER_S - cut["from_s"]) * cut["stretch"], row[key])
                    for t, row in (parent.labels if key == "phase" else parent.events)
                    if cut["from_s"] < t / NS_PER_S < cut["to_s"]
                    and row[key] not in ("episode_start", "episode_end")
                ]
                got = [
                    (row["t_mono_ns"] / NS_PER_S, row[key])
                    for row in listed
                    if row["t_mono_ns"] > 2_000_000 and row[key] != "episode_end"
                ]
                assert [name for _, name in got] == [name for _, name in expected]
                assert np.allclose([t for t, _ in got], [t for t, _ in expected], atol=1e-6)
            before = [row["phase"] for t, row in parent.labels if t / NS_PER_S <= cut["from_s"]]
            first = before[-1] if before else parent.labels[0][1]["phase"]
            assert content.labels[0]["phase"] == first
            duration_s = (content.ended_at_ns - content.started_at_ns) / NS_PER_S
            stretched_s = (cut["to_s"] - cut["from_s"]) * cut["stretch"]
            assert duration_s == pytest.approx(stretched_s, abs=1e-6)
            attacked += any(row["phase"] == "infected_running" for row in content.labels)
    assert attacked == 5 * sum(name.tier == 3 for name, _ in read)


def test_rates_are_those_of_the_parent_times_a_factor(
    read: list[tuple[ParentId, Parent]],
) -> None:
    """The factor of a channel is the same for all episodes of a host, within a few percent."""
    factors = []
    for name, parent in read:
        for number in range(2):
            content = make_content(child_of(name, number), parent, seed=0)
            cut = content.meta["simulation"]
            sheet, was = content.sources["proc"], parent.sources["proc"]
            t_s = sheet.column("t_mono_ns")[[0, -1]] / NS_PER_S
            at = cut["from_s"] + t_s / cut["stretch"]
            before = np.interp(at, was.t_ns / NS_PER_S, was.values["voluntary_ctxt_switches"])
            now = sheet.column("voluntary_ctxt_switches")[[0, -1]]
            rate = np.diff(before)[0] / np.diff(at)[0]
            factors.append(np.diff(now)[0] / np.diff(t_s)[0] / rate)
    assert np.std(np.log(factors)) < 0.1


def test_a_child_has_windows_of_the_phases_of_its_parent(
    verdicts: dict[str, Any], recorded: Path
) -> None:
    own = {}
    for record, episode in judged(recorded).values():
        own[record.episode_id] = set(extract(episode, LAYOUT).windows.label)
    seen: set[str] = set()
    for record, episode in verdicts.values():
        if record.verdict == "accepted":
            extracted = extract(episode, LAYOUT)
            assert set(extracted.windows.label) <= own[record.parent_episode_id] | {"clean"}
            assert not np.isnan(extracted.series).all(axis=0).any()  # every channel has values
            seen |= set(extracted.windows.label)
    assert seen == set(PHASES)


def test_rows_are_written_as_json_has_them() -> None:
    template = {"a": 1, "source": "x", "on": True, "load": 0.5, "z": -3}
    numbers = {"a": [0, 7, 2**62], "load": [0, 5, 12345], "z": [-1, 0, 10]}
    sheet = make_sheet(template, {k: np.array(v) for k, v in numbers.items()}, 3)
    rows = [json.loads(line) for line in sheet.text().splitlines()]
    assert [list(row) for row in rows] == [list(template)] * 3
    assert [row["a"] for row in rows] == numbers["a"]
    assert [row["load"] for row in rows] == [0.0, 0.05, 123.45]
    assert [row["z"] for row in rows] == numbers["z"]
    assert {(row["source"], row["on"]) for row in rows} == {("x", True)}
    silent = [json.loads(line) for line in sheet.without("load").text().splitlines()]
    assert [row["load"] for row in silent] == [None] * 3
    assert [row["z"] for row in silent] == numbers["z"]


def test_the_meta_lists_the_files_as_they_are(read: list[tuple[ParentId, Parent]]) -> None:
    name, parent = read[0]
    content = make_content(child_of(name), parent, seed=0)
    members = seal(content)
    meta = json.loads(members.pop("meta.json"))
    assert {n: f["rows"] for n, f in meta["files"].items()} == {
        n: text.count(b"\n") for n, text in members.items()
    }
    assert meta["result"]["rows_proc"] == len(content.sources["proc"])


# --- the same again


@pytest.mark.slow
def test_a_seed_gives_the_same_bytes_in_any_number_of_processes(
    store: Path, recorded: Path, tmp_path: Path
) -> None:
    wanted = CorpusRequest(2 * len(DEFECTS), 5, hosts=3, defects=0.5)
    make(tmp_path / "two", recorded, wanted, processes=2, prepare=log_to_stderr)
    assert contents(tmp_path / "two") == contents(store)


def test_a_corpus_grows_from_any_copy_of_the_parents(
    store: Path, recorded: Path, tmp_path: Path
) -> None:
    shutil.copytree(recorded, tmp_path / "copy")
    again = open_corpus(store, tmp_path / "copy", CorpusRequest(2 * len(DEFECTS), 5), append=False)
    assert again.done
    (listed,) = [e for e in list_store(tmp_path / "copy").episodes if e.host_id == "lab-e"][:1]
    listed.path.unlink()
    with pytest.raises(SimulationError, match="episodes other than those"):
        open_corpus(store, tmp_path / "copy", CorpusRequest(2 * len(DEFECTS), 5), append=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about["parts"][0].pop("episodes"),
        lambda about: about["parts"][0].update(stand_ins=False),  # of an older version
        lambda about: about["parts"].clear(),
        lambda about: about.update(parts=7, seed="x"),
        lambda about: about.pop("done"),
        lambda about: about.update(format=0),
    ],
)
def test_a_changed_description_is_refused_by_its_name(
    change: Callable[[dict[str, Any]], Any], store: Path, recorded: Path, tmp_path: Path
) -> None:
    about = json.loads((store / "simulation.json").read_text())
    change(about)
    (tmp_path / "simulation.json").write_text(json.dumps(about))
    with pytest.raises(SimulationError, match=r"simulation\.json: was changed"):
        open_corpus(tmp_path, recorded, CorpusRequest(7, 5), append=True)


def test_another_seed_gives_another_corpus(recorded: Path, tmp_path: Path) -> None:
    one, other = (
        contents(tmp_path / str(seed))
        for seed in (0, 1)
        if make(tmp_path / str(seed), recorded, CorpusRequest(4, 1, hosts=2, seed=seed))
    )
    assert one.keys() & other.keys() == {"index.jsonl", "simulation.json"}


def test_an_episode_depends_on_its_number_alone(store: Path, recorded: Path) -> None:
    plan = open_corpus(store, recorded, CorpusRequest(2 * len(DEFECTS), 5), append=False).plan
    child = plan.child(plan.parts[0], 12)
    packed, _ = simulate(child, read_parent(child.parent), plan.seed)
    path = store / "episodes" / child.host_id / f"{child.episode_id}.tar.zst"
    assert path.read_bytes() == packed


def test_what_was_interrupted_is_finished(store: Path, recorded: Path, tmp_path: Path) -> None:
    whole = contents(store)
    torn = tmp_path / "torn"
    shutil.copytree(store, torn)
    index = (torn / "index.jsonl").read_bytes()
    lines = index.splitlines(keepends=True)
    (torn / "index.jsonl").write_bytes(b"".join(lines[:30]) + lines[30][:40])
    for line in lines[31:]:
        row = json.loads(line)
        path = torn / "episodes" / row["host_id"] / f"{row['episode_id']}.tar.zst"
        path.unlink(missing_ok=True)
    about = json.loads((torn / "simulation.json").read_text())
    (torn / "simulation.json").write_text(json.dumps(about | {"done": False}))
    with pytest.raises(SimulationError, match="not finished"):
        open_corpus(torn, recorded, CorpusRequest(7, 5), append=True)
    make(torn, recorded, CorpusRequest(2 * len(DEFECTS), 5), append=True)
    assert contents(torn) == whole


@pytest.mark.parametrize("line", [b"{", b"\xff\n", b"7\n", b"{}\n"])
def test_a_changed_line_of_the_index_is_named(
    line: bytes, store: Path, recorded: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    lines = (copy / "index.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "index.jsonl").write_bytes(b"".join([*lines[:4], line, *lines[4:]]))
    with pytest.raises(SimulationError, match=r"index\.jsonl: line 5 was changed"):
        make(copy, recorded, CorpusRequest(2 * len(DEFECTS), 5))


def test_a_corpus_grows_by_new_episodes_on_new_days(
    store: Path, recorded: Path, tmp_path: Path
) -> None:
    grown = tmp_path / "grown"
    shutil.copytree(store, grown)
    before = contents(grown)
    make(grown, recorded, CorpusRequest(6, 2, hosts=2), append=True)
    after = contents(grown)
    added = [Path(name).name[:26] for name in after.keys() - before.keys()]
    assert len(added) == 6
    assert {episode_day(name) for name in added} == {"2027-01-06", "2027-01-07"}
    assert after["index.jsonl"].startswith(before["index.jsonl"])
    make(grown, recorded, CorpusRequest(3, 1, first_day="2027-01-02"), append=True)  # late ones
    late = [Path(name).name[:26] for name in contents(grown).keys() - after.keys()]
    assert [episode_day(name) for name in late] == ["2027-01-02"] * 3


# --- where children go


plans = st.builds(
    lambda episodes, days, hosts, seed, defects: Plan(
        seed, MADE_UP, (Part(0, episodes, days, hosts, "2027-01-01", defects),), tuple(DEFECTS)
    ),
    episodes=st.integers(200, 1500),
    days=st.integers(1, 40),
    hosts=st.integers(1, 20),
    seed=st.integers(0, 10**6),
    defects=st.sampled_from([0.0, 0.02, 0.1]),
)


def usable(plan: Plan) -> pl.DataFrame:
    """The usable episodes of a plan as datasets are given them; each is 100 s long."""
    return pl.DataFrame(
        [
            {
                "episode_id": child.episode_id,
                "parent_episode_id": child.parent.episode_id,
                "host_id": child.host_id,
                "sample_sha256": child.sample,
                "sample_name": child.sample,
                "profile": child.parent.profile,
                "verdict": verdict,
                "started_at_wall_ns": child.started_at_ns,
                "ended_at_wall_ns": child.started_at_ns + 100 * NS_PER_S,
            }
            for part in plan.parts
            for child in plan.children(part)
            if (verdict := VERDICT_OF_REASON.get(child.defect or "", "accepted"))
            in ("accepted", "degraded")
        ]
    )


def kin_on_two_sides(assigned: pl.DataFrame) -> list[str]:
    sides: dict[str, set[str]] = {}
    for row in assigned.drop_nulls("split").to_dicts():
        sides.setdefault(row["parent_episode_id"] or row["episode_id"], set()).add(row["split"])
    return [name for name, splits in sides.items() if len(splits) > 1]


@quick
@given(plan=plans, val_by=st.sampled_from(["sample", "episode"]))
def test_every_recipe_keeps_all_its_sides_and_kin_together(plan: Plan, val_by: Any) -> None:
    episodes = usable(plan)
    days, hosts = plan.parts[0].days, plan.parts[0].hosts
    for recipe in RECIPES:
        if (recipe == "host" and hosts < 2) or (recipe == "session" and days < 2):
            continue
        assigned = assign_splits(episodes, recipe, SplitPolicy(val_by=val_by))
        assert set(assigned["split"].drop_nulls()) == {"train", "val", "test"}
        assert kin_on_two_sides(assigned) == []
        near = assigned.filter(pl.col("excluded").str.starts_with("kin"))
        lost = len(near) / len(assigned)
        if recipe in ("host", "sample"):
            assert lost == 0
        elif recipe == "time" and days >= 10:
            assert lost < 0.1
        train = assigned.filter(pl.col("split") == "train")
        assert set(train["profile"]) == set(PROFILES)


@quick
@given(plan=plans, recipe=st.sampled_from([*RECIPES]))
def test_kin_stay_together_with_their_parents_in_the_store(plan: Plan, recipe: str) -> None:
    """Recorded on other hosts, earlier: what is kin of a tested episode takes no part."""
    episodes = usable(plan)
    first = episodes.row(0, named=True)
    recorded = [
        first
        | {
            "episode_id": parent.episode_id, "parent_episode_id": "", "verdict": "accepted",
            "host_id": ("lab-a", "lab-b")[i % 2], "profile": parent.profile,
            "sample_sha256": f"old{i % 24}", "sample_name": f"old{i % 24}",
            "started_at_wall_ns": 200 * i * NS_PER_S,
            "ended_at_wall_ns": (200 * i + 100) * NS_PER_S,
        }
        for i, parent in enumerate(MADE_UP)
    ]  # fmt: skip
    both = pl.concat([episodes, pl.DataFrame(recorded, schema=episodes.schema)])
    if (recipe == "host" and plan.parts[0].hosts < 3) or recipe == "session":
        return  # the host has everything; ids of made-up parents have no day
    policy = SplitPolicy(test_host="lab-c") if plan.parts[0].hosts > 2 else SplitPolicy()
    assigned = assign_splits(both, recipe, policy)
    assert kin_on_two_sides(assigned) == []
    assert set(assigned["split"].drop_nulls()) == {"train", "val", "test"}


@quick
@given(plan=plans)
def test_episodes_are_spread_and_in_order(plan: Plan) -> None:
    part = plan.parts[0]
    children = list(plan.children(part))
    starts = [child.started_at_ns for child in children]
    assert starts == sorted(starts)
    assert len({child.episode_id for child in children}) == part.episodes
    per_host = Counter(child.host_id for child in children)
    assert max(per_host.values()) - min(per_host.values()) <= 1
    per_day = Counter(episode_day(child.episode_id) for child in children)
    assert max(per_day.values()) - min(per_day.values()) <= 1
    assert len(per_day) == part.days
    defects = Counter(child.defect for child in children if child.defect)
    assert sum(defects.values()) == int(part.defects * part.episodes)
    assert not defects or max(defects.values()) - min(defects.values()) <= 1 or len(defects) < 25


def test_the_host_that_is_held_out_by_default_is_always_there() -> None:
    for count in (2, 3, 12, 60):
        names = host_names(count)
        assert len(set(names)) == count
        assert SplitPolicy().test_host in names


# --- what is refused


def run(*words: object) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, ["simulate", "--json", *map(str, words)])
    return result.exit_code, json.loads(result.stdout)


def test_the_command_makes_a_store(recorded: Path, tmp_path: Path) -> None:
    words = ("--store", tmp_path / "new", "--from", recorded, "--days", 2, "--hosts", 2)
    code, said = run("--episodes", 5, *words)
    assert (code, said["episodes"], said["kept"]) == (OK, 5, 0)
    archives = [path.stat().st_size for path in (tmp_path / "new" / "episodes").rglob("*.zst")]
    assert said["bytes_written"] == sum(archives)
    code, said = run("--episodes", 5, *words)
    assert (code, said["episodes"], said["kept"]) == (OK, 0, 5)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--store", EMBEDDED], "recorded store"),
        (["--store", "RECORDED"], "recorded store"),
        (["--store", "IN_RECORDED"], "recorded store"),
        (["--store", "NEW", "--hosts", 2, "--shards", "NEW"], "artifacts must not be the store"),
        (["--store", "NEW", "--hosts", 2, "--shards", "IN_RECORDED"], "recorded store"),
        (["--store", "OTHER"], "simulation.json"),
        (["--store", "SIMULATED"], "--append"),
        (["--store", "NEW", "--append"], "no simulated store"),
        (["--store", "SIMULATED", "--append", "--seed", 3], "seed must be 0"),
        (["--store", "SIMULATED", "--append", "--hosts", 4], "hosts must be 1 to 3"),
        (["--store", "NEW", "--hosts", 5], "at most 3"),
        (["--store", "NEW", "--defects", 2], "0 to 1, got 2"),
        (["--store", "NEW", "--first-day", "1.1.2027"], "--first-day"),
        (["--store", "NEW", "--first-day", "1969-12-31"], "1970-01-01"),
        (["--store", "NEW", "--first-day", "9999-12-30"], "2262-01-01"),
        (["--store", "NEW", "--days", 4_000_000], "2262-01-01"),
    ],
)
def test_what_is_asked_for_wrongly_is_refused_and_nothing_written(
    words: list[Any], why: str, recorded: Path, store: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    places = {"RECORDED": recorded, "OTHER": tmp_path / "other", "SIMULATED": store}
    places |= {"NEW": tmp_path / "new", "IN_RECORDED": recorded / "episodes" / "lab-a" / "new"}
    before = {name: contents(path) for name, path in places.items()}
    words = [places.get(word, word) for word in words]
    code, said = run("--from", recorded, "--episodes", 9, "--days", 1, *words)
    assert (code, why in said["error"]) == (USAGE, True), said
    assert {name: contents(path) for name, path in places.items()} == before


def test_a_store_without_a_good_episode_has_no_children(tmp_path: Path) -> None:
    (tmp_path / "empty" / "episodes").mkdir(parents=True)
    words = ("--store", tmp_path / "new", "--from", tmp_path / "empty", "--episodes", 1)
    code, said = run(*words, "--days", 1)
    assert (code, "accepted episode" in said["error"]) == (USAGE, True)


def test_a_disk_that_takes_nothing_is_named(recorded: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = ("--store", tmp_path / "file" / "new", "--from", recorded, "--episodes", 1)
    code, said = run(*words, "--days", 1, "--hosts", 1)
    assert (code, "not written" in said["error"]) == (USAGE, True), said


# --- shards without archives


SHORT = CorpusRequest(30, 2, hosts=2, defects=0.2, longest_s=40)


def made(folder: Path, recorded: Path, wanted: CorpusRequest) -> tuple[Corpus, Workspace]:
    corpus = open_corpus(folder / "store", recorded, wanted, append=False)
    write_corpus(corpus, 1)
    return corpus, workspace_of(None, folder / "store", folder / "artifacts")


@pytest.fixture(scope="module")
def direct(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, Workspace]:
    folder = tmp_path_factory.mktemp("direct")
    corpus, workspace = made(folder, recorded, replace(SHORT, placeholders=True))
    write_shards(corpus, workspace, 1)
    return corpus, workspace


def test_shards_written_directly_are_those_that_ingest_makes_of_the_archives(
    direct: tuple[Corpus, Workspace], recorded: Path, tmp_path: Path
) -> None:
    one = Project(direct[1])
    other = Project(made(tmp_path, recorded, SHORT)[1])
    assert one.listing.batches.keys() == other.listing.batches.keys()
    archive = {"sha256": "", "size_bytes": 0, "identity": ""}  # a placeholder has its own
    for batch in other.listing.batches:
        ours, theirs = (p.make(p.stages["ingest"], batch).artifacts for p in (one, other))
        for output in ("tensor_shards", "feature_shards"):
            assert ours[output].files == theirs[output].files
            assert ours[output].facts == theirs[output].facts
        rows = [read_table(m.path("index")).to_pylist() for m in (
            ours["validation_index"], theirs["validation_index"]
        )]  # fmt: skip
        assert [row | archive for row in rows[0]] == [row | archive for row in rows[1]]


def test_they_are_current_for_their_store(direct: tuple[Corpus, Workspace]) -> None:
    corpus, workspace = direct
    project = Project(workspace)
    statuses = project.statuses(project.stages["ingest"], verify=True)
    assert [status.state for status in statuses] == ["current"] * 4
    usable = sum(project.artifacts("ingest", b)["tensor_shards"].facts["episodes"]
                 for b in project.listing.batches)  # fmt: skip
    defects = Counter(child.defect for child in corpus.plan.children(corpus.part))
    bad = sum(n for code, n in defects.items() if VERDICT_OF_REASON.get(code or "") in
              ("rejected", "errored"))  # fmt: skip
    assert usable == corpus.part.episodes - bad


def test_a_placeholder_takes_no_place_and_is_no_episode(direct: tuple[Corpus, Workspace]) -> None:
    corpus, workspace = direct
    found = judged(workspace.store_path)
    for child in corpus.plan.children(corpus.part):
        path = workspace.store_path / "episodes" / child.host_id / f"{child.episode_id}.tar.zst"
        if child.placeholder:
            assert path.stat().st_blocks == 0
            assert found[child.episode_id][0].reasons == ("broken_archive",)


@pytest.mark.slow
def test_shards_are_the_same_however_many_processes_write_them(
    direct: tuple[Corpus, Workspace], recorded: Path, tmp_path: Path
) -> None:
    corpus, workspace = made(tmp_path, recorded, replace(SHORT, placeholders=True))
    write_shards(corpus, workspace, 2, prepare=log_to_stderr)
    assert contents(workspace.artifacts_path) == contents(direct[1].artifacts_path)


def test_what_is_written_already_is_kept(direct: tuple[Corpus, Workspace]) -> None:
    corpus, workspace = direct
    assert write_shards(corpus, workspace, 1) == 0


def test_a_part_is_done_when_its_shards_are_written(recorded: Path, tmp_path: Path) -> None:
    wanted = replace(SHORT, placeholders=True)
    corpus, workspace = made(tmp_path, recorded, wanted)
    assert not open_corpus(corpus.folder, recorded, wanted, append=True).done
    with pytest.raises(SimulationError, match=r"not finished.* --shards FOLDER"):
        open_corpus(corpus.folder, recorded, replace(SHORT, placeholders=False), append=False)
    write_shards(corpus, workspace, 1)
    assert open_corpus(corpus.folder, recorded, wanted, append=False).done
    grown = open_corpus(corpus.folder, recorded, replace(wanted, episodes=1), append=True)
    write_corpus(grown, 1)
    with pytest.raises(SimulationError, match="another `phasewatch simulate` changed it"):
        complete(corpus)  # late
    complete(grown)
    assert len(open_corpus(corpus.folder, recorded, wanted, append=True).plan.parts) == 3


def test_an_unfinished_part_names_the_options_that_finish_it(
    recorded: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    wanted = replace(SHORT, defects=0.0312345678, placeholders=True)
    write_corpus(open_corpus(folder, recorded, wanted, append=False), 1)
    words = ("--from", recorded, "--store", folder)
    code, said = run(*words, "--episodes", 3, "--days", 1)
    options = said["error"].partition("run it again with: ")[2].split()
    assert (code, options[-1]) == (USAGE, "FOLDER")
    code, said = run(*words, *options[:-1], tmp_path / "artifacts")
    assert (code, said["kept"], said["windows"] > 0) == (OK, 30, True), said


@pytest.mark.parametrize("changed", [{"episodes": 3}, {"seed": 5}])
def test_of_two_first_calls_one_is_refused(
    changed: dict[str, Any], recorded: Path, tmp_path: Path
) -> None:
    wanted = CorpusRequest(2, 1, hosts=1)
    one, other = (
        open_corpus(tmp_path, recorded, each, append=False)
        for each in (wanted, replace(wanted, **changed))
    )
    write_corpus(one, 1)
    before = contents(tmp_path)
    with pytest.raises(SimulationError, match="another `phasewatch simulate` changed it"):
        write_corpus(other, 1)
    assert contents(tmp_path) == before
