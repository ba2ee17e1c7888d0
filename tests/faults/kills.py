"""Faults of a power cut: kill -9 at a random moment of everything that writes.

A try copies an artifacts folder, kills a writer in it, looks at what is left, and has the writer do
its work again. What it comes to must be what comes of a writer that nobody kills. The log of
decisions is killed in ``faults.rest``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builders import PROFILES, StoreBuilder
from lab import RECIPE, SMALL, TINY, Lab, bundle_of, put_in_use, settings_of

from champion.history import read_history, roll_back
from config.paths import CLONE
from datasets.exclusions import read_exclusions
from episodes.store import list_store
from faults.table import Bench, Outcome, fault
from faults.warm import FEW, warm
from features.files import file_sha256
from features.registry import LAYOUT
from live.bundle import load_bundle
from simulation.corpus import CorpusRequest, open_corpus, write_corpus
from stages.project import Project
from stages.retention import delete_items, disk_usage, items_to_discard

SETTINGS = TINY | {"models": {name: settings_of(name, SMALL) for name in FEW}}
GBT, CNN = "gbt_realistic", "cnn_realistic"
PARENTS_PER_HOST = 2


def lab_at(root: Path, **settings: Any) -> Lab:
    """The store and the artifacts of a try; no records of Dagster's."""
    store = StoreBuilder.reopen(root / "store")
    return Lab(store, root / "artifacts", None, SETTINGS | settings)  # type: ignore[arg-type]


def build(folder: str) -> None:
    """Everything once: ingested, trained, judged, promoted, scored, and reported on."""
    root = Path(folder)
    StoreBuilder(root / "store").populate(profiles=PROFILES[:3], variants=3, duration_s=40)
    project = lab_at(root).project
    for batch in project.listing.batches:
        project.make(project.stages["ingest"], batch)
    for stage in project.stages.values():
        if stage.partition == "recipe":
            project.make(stage, RECIPE)
    for _ in range(2):
        put_in_use(lab_at(root), "gbt")
    project = lab_at(root).project
    for batch in project.listing.batches:
        project.make(project.stages["drift"], batch)
        project.make(project.stages["predictions"], batch)
    project.make(project.stages["report"], "")
    batch = next(iter(project.listing.batches))
    _recorded(root / "parents")
    for i in range(5):  # old scores, which may go
        scores = root / "artifacts" / "predictions" / batch
        shutil.copytree(scores / f"{GBT}.time", scores / f"old{i}.time")
        os.utime(scores / f"old{i}.time" / "manifest.json", (1e9 + i, 1e9 + i))


# --- the writers, each from any state to the same content


def _makes(name: str, *, keys: Callable[[Project], list[str]] | None = None) -> Writer:
    def chosen(root: Path) -> tuple[Project, list[str]]:
        project = lab_at(root, force=True).project
        partition = project.stages[name].partition
        if keys or partition == "batch":
            return project, (keys(project) if keys else list(project.listing.batches))
        return project, [RECIPE if partition == "recipe" else ""]

    def work(root: Path) -> None:
        project, names = chosen(root)
        for key in names:
            project.make(project.stages[name], key)

    def content(root: Path) -> Any:
        project, names = chosen(root)
        made = [project.artifacts(name, key) for key in names]
        return [{output: artifact.version for output, artifact in one.items()} for one in made]

    return Writer(work, content)


@dataclass(frozen=True)
class Writer:
    work: Callable[[Path], None]
    content: Callable[[Path], Any]


def _promote(root: Path) -> None:
    put_in_use(lab_at(root), "gbt")


def _roll_back(root: Path) -> None:
    roll_back(lab_at(root).workspace.champion_folder, LAYOUT, by="test", why="")


def _history(root: Path) -> Any:
    history = read_history(lab_at(root).workspace.champion_folder)
    numbered = [champion.number for champion in history] == list(range(1, len(history) + 1))
    return {"numbered": numbered and len(history) > 1, "in use": history[-1].checkpoints}


def _bundle(root: Path) -> None:
    bundle_of(lab_at(root), "gbt", root / "bundle")


def _bundled(root: Path) -> Any:
    """Of each file its hash, and whose it is; the head has the time when it was made, too."""
    head = load_bundle(root / "bundle").head
    return {key: head[key] for key in ("files", "model", "mode") if key in head}


def _prune(root: Path) -> None:
    workspace = lab_at(root, artifacts_budget_gb=1e-9).workspace
    delete_items(items_to_discard(workspace, disk_usage(workspace.artifacts_path)))


def _recorded(folder: Path) -> None:
    """A store of a few embedded episodes of every host: what a simulation is made from."""
    assert CLONE
    store = CLONE / "data" / "store"
    by_host: dict[str, list[Any]] = {}
    for stored in list_store(store).episodes:
        if stored.index_rows and "DEFECT" not in stored.episode_id:
            by_host.setdefault(stored.host_id, []).append(stored)
    chosen = [stored for listed in by_host.values() for stored in listed[:PARENTS_PER_HOST]]
    for stored in chosen:
        path = folder / stored.path.relative_to(store)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(stored.path, path)
    ids = {stored.episode_id for stored in chosen}
    lines = (store / "index.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = "".join(line for line in lines if json.loads(line)["episode_id"] in ids)
    (folder / "index.jsonl").write_text(kept, encoding="utf-8")


def _simulate(root: Path) -> None:
    wanted = CorpusRequest(4, 1, hosts=2, defects=0.0, longest_s=20)
    write_corpus(open_corpus(root / "simulated", root / "parents", wanted, append=False), 1)


def _exclude(root: Path) -> None:
    from pipelines.cli.episodes import exclude

    lab = lab_at(root)
    ours = lab.store.added[0].episode_id
    if any(entry.episode == ours for entry in read_exclusions(lab.workspace.exclusions_path)):
        return  # written before the kill; the same twice is refused
    exclude(
        ours, reason="test", who="test",
        store=lab.store.root, artifacts=lab.artifacts,
    )  # fmt: skip


def _excluded(root: Path) -> Any:
    lab = lab_at(root)
    found = read_exclusions(lab.workspace.exclusions_path)
    return sorted({entry.episode for entry in found} - {lab.store.added[0].episode_id}) or "ours"


def _tree(name: str) -> Callable[[Path], Any]:
    def content(root: Path) -> Any:
        return {
            str(path.relative_to(root)): file_sha256(path)
            for path in sorted((root / name).rglob("*"))
            if path.is_file()
        }

    return content


WRITERS = {
    "ingest": _makes("ingest"),
    "datasets": _makes("datasets"),
    "checkpoint of trees": _makes(f"checkpoints/{GBT}"),
    "checkpoint of a net": _makes(f"checkpoints/{CNN}"),
    "alarm rule": _makes(f"alarm_rules/{GBT}"),
    "likeness": _makes("likeness/realistic"),
    "held-out predictions": _makes("held_out_predictions"),
    "report": _makes(f"eval_reports/{GBT}"),
    "comparisons": _makes("comparisons"),
    "page": Writer(_makes("report").work, lambda root: (root / "artifacts/reports").is_dir()),
    "drift": _makes("drift"),
    "predictions": _makes("predictions"),
    "promotion": Writer(_promote, _history),
    "rollback": Writer(_roll_back, _history),
    "bundle": Writer(_bundle, _bundled),
    "pruning": Writer(_prune, _tree("artifacts/predictions")),
    "simulation": Writer(_simulate, _tree("simulated")),
    "exclusions": Writer(_exclude, _excluded),
}


# --- in children of the warm process


def killed_in(seconds: str, folder: str, name: str) -> None:
    """Do a writer's work, and be killed so many seconds after it began."""
    parent = os.getpid()
    if not os.fork():
        time.sleep(float(seconds))
        if os.getppid() == parent:
            os.kill(parent, signal.SIGKILL)
        os._exit(0)
    with contextlib.redirect_stdout(io.StringIO()):
        WRITERS[name].work(Path(folder))


def again(folder: str, name: str) -> None:
    """Say what is there, do a writer's work to its end, and say what is there then."""
    root = Path(folder)
    before, began = _codes(root), time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        WRITERS[name].work(root)
        took = time.monotonic() - began
        content = WRITERS[name].content(root)
    document = {"before": before, "after": _codes(root), "content": content, "seconds": took}
    print(json.dumps(document, sort_keys=True))


def told_of_all(folder: str) -> None:
    """Say of everything that there is whether it is as it was written; the champion loads."""
    root = Path(folder)
    history = _history(root)
    assert history["numbered"], history
    print(json.dumps(_codes(root)))


def _codes(root: Path) -> dict[str, str]:
    """Of everything that there is, whether it is as it was written."""
    project = lab_at(root).project
    return dict(_each_code(project))


def _each_code(project: Project) -> Iterator[tuple[str, str]]:
    for stage in project.stages.values():
        for status in project.statuses(stage, verify=True):
            yield f"{stage.name} {status.key}", status.code


# --- the fault


def _expected(bench: Bench, name: str) -> dict[str, Any]:
    """What comes of a writer that nobody kills."""

    def make(folder: Path) -> None:
        root = Path(shutil.copytree(whole(bench), folder / "root"))
        ran = warm().start(folder, root, name, call="faults.kills:again").wait(300)
        assert ran.code == 0, ran.err
        (folder / "told.json").write_text(ran.out, encoding="utf-8")
        shutil.rmtree(root)

    made = bench.made(f"undisturbed-{hashlib.sha256(name.encode()).hexdigest()[:8]}", make)
    return json.loads((made / "told.json").read_text(encoding="utf-8"))


def whole(bench: Bench) -> Path:
    def make(folder: Path) -> None:
        ran = warm().start(folder, folder, call="faults.kills:build").wait(600)
        assert ran.code == 0, ran.err

    return bench.made("whole", make)


def _killed(bench: Bench, name: str) -> Outcome:
    expected = _expected(bench, name)
    root, said = bench.copy(whole(bench)), bench.folder / "said"
    moment = bench.random.uniform(0, 1.05 * expected["seconds"])
    child = warm().start(said, moment, root, name, call="faults.kills:killed_in")
    first = child.wait(120)
    if broken := first.broken if first.code != -signal.SIGKILL else None:
        return broken
    ran = warm().start(said, root, name, call="faults.kills:again").wait(120)
    if ran.broken:
        return ran.broken
    if ran.code:
        return Outcome("lost", ran.err[-1500:])
    told = json.loads(ran.out)
    changed = {
        key: (code, told["before"][key])
        for key, code in expected["before"].items()
        if told["before"][key] not in (code, expected["after"][key])
    }
    if changed:
        return Outcome("lost", f"after the kill at {moment:.3f} s: {changed}")
    other = {key: (code, told["after"][key]) for key, code in expected["after"].items()
             if told["after"][key] != code}  # fmt: skip
    if other or told["content"] != expected["content"]:
        what = f"{told['content']} is not {expected['content']}"
        return Outcome("wrong", f"after the kill at {moment:.3f} s: {other} {what[:2000]}")
    return Outcome("harmless", f"{first.code}")


def _declare(name: str) -> None:
    @fault(f"kill -9: {name}", tries=6, quick=0)  # making what they need takes a minute
    def kill(bench: Bench) -> Outcome:
        return _killed(bench, name)


for _name in WRITERS:
    _declare(_name)


# --- through Dagster

INGEST = ("run", "--ingest-only")


def _small_store(folder: Path) -> None:
    StoreBuilder(folder / "store").populate(profiles=PROFILES[:1], variants=1, duration_s=20)


def addressed(root: Path) -> tuple[str | Path, ...]:
    return ("--store", root / "store", "--artifacts", root / "artifacts")


def dying(seconds: float) -> str:
    """The prelude of a command that is killed so long after it began."""
    return (
        "import os, signal, time\n"
        "parent = os.getpid()\n"
        "if not os.fork():\n"
        f"    time.sleep({seconds})\n"
        "    if os.getppid() == parent:\n"
        "        os.kill(parent, signal.SIGKILL)\n"
        "    os._exit(0)\n"
    )


def told_of_ingest(folder: str, home: str = "") -> None:
    """Say which batches there are, and the states of Dagster's runs.

    Args:
        home: of Dagster; empty: the usual one.
    """
    import dagster as dg

    root = Path(folder)
    project = lab_at(root).project
    made = {key: project.artifacts("ingest", key) for key in project.listing.batches}
    versions = {
        key: {name: each.version if each else None for name, each in artifacts.items()}
        for key, artifacts in made.items()
    }
    home = home or str(root / "artifacts" / "dagster_home")
    with dg.DagsterInstance.from_config(home) as instance:
        states = sorted({run.status.value for run in instance.get_runs()})
    print(json.dumps({"made": versions, "states": states}))


def ingested(bench: Bench) -> dict[str, Any]:
    """What a run that nothing disturbs makes, and how long it takes."""

    def make(folder: Path) -> None:
        _small_store(folder)
        began = time.monotonic()
        ran = warm().start(folder, *INGEST, *addressed(folder), env=HOMELESS).wait(300)
        took = time.monotonic() - began
        assert ran.code == 0, ran.err
        told = warm().start(folder, folder, call="faults.kills:told_of_ingest").wait(60)
        document = json.loads(told.out) | {"seconds": took}
        (folder / "told.json").write_text(json.dumps(document), encoding="utf-8")
        shutil.rmtree(folder / "artifacts")

    made = bench.made("small", make)
    return {"folder": made, **json.loads((made / "told.json").read_text(encoding="utf-8"))}


HOMELESS: dict[str, str | None] = {"DAGSTER_HOME": None}


@fault("kill -9: a run of Dagster's", tries=20, quick=1)
def kill_run(bench: Bench) -> Outcome:
    """Whatever it left, the next commands end its run and make the same."""
    expected = ingested(bench)
    root = bench.copy(expected["folder"])
    seconds, said = bench.random.uniform(0, expected["seconds"]), bench.folder / "said"
    words = (*INGEST, *addressed(root))
    first = warm().start(said, *words, env=HOMELESS, prelude=dying(seconds)).wait(120)
    if broken := first.broken if first.code != -signal.SIGKILL else None:
        return broken
    for command in (("sync", "--json"), INGEST):
        ran = warm().start(said, *command, *addressed(root), env=HOMELESS).wait(120)
        if ran.broken or ran.code:
            return ran.broken or Outcome("lost", f"after {seconds:.3f} s: {ran.err[-1500:]}")
    told = json.loads(warm().start(said, root, call="faults.kills:told_of_ingest").wait(60).out)
    if told["made"] != expected["made"]:
        return Outcome("wrong", f"after {seconds:.3f} s: {told}")
    ended = set(told["states"]) <= {"SUCCESS", "FAILURE"}
    return Outcome("harmless" if ended else "hang", f"after {seconds:.3f} s: {told['states']}")
