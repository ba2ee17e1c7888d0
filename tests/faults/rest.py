"""Faults of data at rest: one bit is another, or the end is gone, in every kind of file.

The commands that read a file are asked in this process, because a command of its own costs a second
for each try. What they answer without the fault is the measure: the same, or a refusal that names
the file.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from builders import PROFILES, StoreBuilder
from held_out import BAD, GOOD, WINDOWS, report_of
from lab import RECIPE, TINY, Lab, bundle_of, put_in_use

from champion.history import read_history
from config.errors import PhasewatchError
from evaluation.decisions import AnswerRecord, AnyRecord, read_chain
from evaluation.documents import EvalReport, Latency, document_text
from faults.table import Bench, Outcome, fault
from features.registry import LAYOUT
from features.shards import read_table
from hub.decisions import DecisionLog
from live.bundle import Bundle, load_bundle
from models.registry import find_variant
from stages.alarm_rules import alarm_rule_of
from stages.batch import INDEX, TENSORS, read_index
from stages.datasets import open_windows
from stages.device_bundle import check_parity
from stages.drift_reference import drift_reference
from stages.evaluation import read_report
from stages.ingest import check_corpus_code, contract_drift
from stages.likeness import likeness_of, likeness_of_test
from stages.manifest import draft
from stages.project import Project
from stages.report_page import HISTORY_FILE, _record_history
from stages.scoring import champion_scorer
from stages.status import StageError

GBT, CNN = find_variant("gbt", "realistic"), find_variant("cnn", "realistic")
BUNDLE = "bundle"


# --- an artifacts folder with every kind of file


def made_artifacts(folder: Path) -> None:
    """Ingested, trained, judged, promoted, scored, bundled, and reported on; a few models alone."""
    store = StoreBuilder(folder / "store")
    store.populate(profiles=PROFILES[:3], variants=3, duration_s=40)
    lab = Lab(store, folder / "artifacts", None, TINY)  # type: ignore[arg-type]
    project = lab.project
    for batch in project.listing.batches:
        project.make(project.stages["ingest"], batch)
    for name in ("datasets", f"checkpoints/{GBT.name}", f"alarm_rules/{GBT.name}",
                 "likeness/realistic"):  # fmt: skip
        project.make(project.stages[name], RECIPE)
    put_in_use(lab, GBT.model)
    put_in_use(lab, GBT.model)
    project = lab.project
    project.make(project.stages["predictions"], next(iter(project.listing.batches)))
    bundle_of(lab, GBT.model, folder / "artifacts" / BUNDLE)
    report = EvalReport.model_validate(report_of(WINDOWS, GOOD, BAD, BAD))
    latency = Latency(processor="none", windows=1, median_ms=1.0, p99_ms=1.0)
    with draft(project.stages[f"eval_reports/{GBT.name}"].folder(lab.workspace, RECIPE)) as staged:
        staged.new_file("report", ".json").write_text(document_text(report))
        staged.commit("made for this", {"latency": latency.model_dump()})
    _log(lab.workspace.decisions_folder)
    _record_history(
        _history_path(project), [report, report.model_copy(update={"checkpoint_id": "b"})]
    )


def _log(folder: Path) -> None:
    """Answers alone: a decision is as good as an answer here."""
    log = DecisionLog(folder)
    for n in range(40):
        asyncio.run(log.answer(f"a{n}", "pi", n % 2 == 0, "seen"))
    log.close()


def _history_path(project: Project) -> Path:
    return project.workspace.report_page.with_name(HISTORY_FILE)


# --- what reads a file, and what it answers


def _training_data(project: Project) -> Any:
    answer = []
    for variant in (GBT, CNN):
        examples = open_windows(project, RECIPE, variant, "test")
        answer += [np.asarray(examples.X[:]).tobytes(), examples.y.tobytes()]
    verdicts = [
        {
            key: (entry.record.as_row(), entry.place)
            for key, entry in read_index(files[INDEX]).items()
        }
        for files in (project.artifacts("ingest", batch) for batch in project.listing.batches)
    ]
    return answer, verdicts


def _checkpoint(project: Project) -> Any:
    checkpoint = project.checkpoint(GBT, RECIPE)
    X = np.random.default_rng(0).normal(size=(8, sum(checkpoint.header["keep_mask"])))
    return checkpoint.header, checkpoint.model.predict_proba(X.astype(np.float32)).tobytes()


def _bound(project: Project) -> Any:
    checkpoint = project.checkpoint(GBT, RECIPE)
    rule, likeness = alarm_rule_of(project, checkpoint), likeness_of(project, checkpoint)
    assert rule is not None
    assert likeness is not None
    test = likeness_of_test(project.existing("likeness/realistic", RECIPE))
    return rule.text(), likeness.to_bytes(), test


def _champion(project: Project) -> Any:
    scorer = champion_scorer(project)
    assert scorer.training is not None
    X = np.random.default_rng(0).normal(size=(8, sum(scorer.checkpoint.header["keep_mask"])))
    return (
        read_history(project.workspace.champion_folder),
        scorer.checkpoint.model.predict_proba(X.astype(np.float32)).tobytes(),
        scorer.required_rule().text(),
        scorer.likeness and scorer.likeness.id,
        scorer.training.rows(),
    )


def _reference(project: Project) -> Any:
    """Made again if it was damaged, and said."""
    champion = project.champion
    assert champion is not None
    return drift_reference(project, champion)


def _statuses(project: Project) -> Any:
    """What every status and every fact says; damage is a status, so it is raised here."""
    answer, damaged = [], []
    for stage in project.stages.values():
        for status in project.statuses(stage):
            damaged += [status] if status.state == "damaged" else []
            answer.append(status.as_row())
            found = project.artifacts(stage.name, status.key).values()
            answer += [a.facts for a in found if hasattr(a, "files")]
    if damaged:
        raise StageError.of(damaged)
    return answer


def _compared(project: Project) -> Any:
    """A bundle beside its checkpoint, on windows from the shards."""
    checkpoint = project.checkpoint(GBT, RECIPE)
    return check_parity(project, _loaded(project.workspace.artifacts_path / BUNDLE), checkpoint)


@cache
def _loaded(folder: Path) -> Bundle:
    return load_bundle(folder)


def _predictions(project: Project) -> Any:
    batch = next(iter(project.listing.batches))
    return pl.DataFrame(
        read_table(project.artifact("predictions", batch).path("predictions"))
    ).rows()


def _report_of(project: Project) -> Any:
    return read_report(project.existing(f"eval_reports/{GBT.name}", RECIPE))


def _bundle(project: Project) -> Any:
    bundle = load_bundle(project.workspace.artifacts_path / BUNDLE)
    X = np.random.default_rng(0).normal(size=(8, *bundle.input_shape)).astype(np.float32)
    return bundle.head, bundle.runtime.proba(X).tobytes(), bundle.rule.text()


def _contracts(project: Project) -> Any:
    """Another layout is explained; without the old contract, its hash alone is said."""
    batch = project.artifacts("ingest", next(iter(project.listing.batches)))
    other = replace(LAYOUT, stats=LAYOUT.stats[:-1])
    lines = contract_drift({TENSORS: batch[TENSORS]}, project.workspace.contracts_folder, other)
    if any(": was contract " in line for line in lines):
        logging.getLogger("phasewatch").warning("%s", lines)
    return lines


def _decisions(project: Project) -> Any:
    lines: list[Any] = []
    chain = read_chain(project.workspace.decisions_folder, lambda *line: lines.append(line))
    for found in chain.faults:
        logging.getLogger("phasewatch").warning("%s", found.line)
    return lines, chain.last, chain.faults


def _code(project: Project) -> Any:
    """Without it, the code is held to the golden vectors instead."""
    check_corpus_code(project.workspace)


def _kept_history(project: Project) -> Any:
    return _record_history(_history_path(project), [])


@dataclass(frozen=True)
class Kind:
    """A kind of file: where it is below the artifacts folder, and what reads it."""

    pattern: str
    read: Callable[[Project], Any]
    quick: int = 2


KINDS = {
    "series shard": Kind("batches/*/tensor_shards/series-*.npy", _training_data),
    "level shard": Kind("batches/*/tensor_shards/level-*.npy", _training_data),
    "statistics shard": Kind("batches/*/feature_shards/features-*.npy", _training_data),
    "window table": Kind("batches/*/*_shards/windows-*.parquet", _training_data),
    "validation index": Kind("batches/*/validation_index/*.parquet", _training_data),
    "dataset": Kind("datasets/*/windows*.parquet", _training_data),
    "manifest of shards": Kind("batches/*/*/manifest.json", _compared),
    "manifest": Kind("**/manifest.json", _statuses),
    "contract": Kind(f"contracts/{'[0-9a-f]' * 64}.json", _contracts),
    "code of the corpus": Kind("contracts/code-*.json", _code),
    "checkpoint header": Kind("checkpoints/*/*.ckpt.json", _checkpoint),
    "checkpoint sidecar": Kind("checkpoints/*/*.ubj", _checkpoint),
    "alarm rule": Kind("alarm_rules/**/rule.*.json", _bound),
    "likeness": Kind("likeness/**/*.[sp]a*", _bound),
    "champion's pointer": Kind("champion/champion.json", _champion),
    "champion's copies": Kind("champion/checkpoints/*/[!r]*", _champion),
    "drift reference": Kind("champion/checkpoints/*/reference.json", _reference),
    "predictions": Kind("predictions/**/predictions.*.parquet", _predictions),
    "report": Kind("reports/*/*/report.*.json", _report_of),
    "history of figures": Kind("reports/history.jsonl", _kept_history),
    "log of decisions": Kind("decisions/*.jsonl", _decisions),
    "head of the log": Kind("decisions/head.json", _decisions),
    "bundle": Kind("bundle/*", _bundle),
}


# --- the faults


@dataclass
class Place:
    """An artifacts folder of this process: a file is damaged, asked about and mended again."""

    project: Callable[[], Project]
    artifacts: Path
    answers: dict[str, Any]


_places: dict[Path, Place] = {}


def _place(bench: Bench) -> Place:
    made = bench.made("artifacts", made_artifacts)
    if bench.base not in _places:
        own = bench.made(f"artifacts-{os.getpid()}", lambda to: _copied(made, to))
        lab = Lab(StoreBuilder.reopen(own / "store"), own / "artifacts", None, TINY)  # type: ignore[arg-type]
        _places[bench.base] = Place(lambda: lab.project, lab.artifacts, {})
    return _places[bench.base]


def _copied(made: Path, to: Path) -> None:
    shutil.copytree(made, to, dirs_exist_ok=True)


@contextmanager
def _said() -> Iterator[list[str]]:
    """What is logged within."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("phasewatch")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def _damaged(bench: Bench, kind: Kind, damage: Callable[[Bench, bytes], bytes]) -> Outcome:
    place = _place(bench)
    if kind.pattern not in place.answers:
        place.answers[kind.pattern] = kind.read(place.project())
    files = sorted(path for path in place.artifacts.glob(kind.pattern) if path.is_file())
    path = bench.random.choice([path for path in files if path.stat().st_size])
    content = path.read_bytes()
    path.write_bytes(damage(bench, content))
    try:
        with _said() as lines:
            answer = kind.read(place.project())
        if answer == place.answers[kind.pattern]:
            return Outcome("harmless")
        if any(path.name in line or path.stem in line for line in lines):
            return Outcome("noticed")
        return Outcome("wrong", f"{path}: another answer, without a word")
    except PhasewatchError as error:
        named = path.name in str(error) or str(path.parent) in str(error)
        return Outcome("noticed" if named else "wrong", f"{path}: {error}")
    finally:
        path.write_bytes(content)


def flipped(bench: Bench, content: bytes) -> bytes:
    """One bit is another."""
    position, changed = bench.random.randrange(8 * len(content)), bytearray(content)
    changed[position // 8] ^= 1 << position % 8
    return bytes(changed)


def cut(bench: Bench, content: bytes) -> bytes:
    """The end is gone: of a crash, or of a copy that broke off."""
    return content[: bench.random.randrange(len(content))]


def _declare(name: str, kind: Kind) -> None:
    @fault(f"flipped bit: {name}", tries=200, quick=kind.quick)
    def flip(bench: Bench) -> Outcome:
        return _damaged(bench, kind, flipped)

    @fault(f"cut: {name}", tries=200, quick=kind.quick)
    def shorten(bench: Bench) -> Outcome:
        return _damaged(bench, kind, cut)


for _name, _kind in KINDS.items():
    _declare(_name, _kind)


@fault("kill -9: the hub while it logs", tries=100, quick=3)
def killed_log(bench: Bench) -> Outcome:
    """The hub dies at a random moment of writing: what it acknowledged is there, in one chain."""
    folder, acknowledged = bench.folder / "decisions", bench.folder / "acknowledged"
    for _ in range(2):  # the second starts on what the first left
        child = os.fork()
        if child == 0:
            try:
                _write_for_ever(folder, acknowledged)
            finally:
                os._exit(1)
        time.sleep(bench.random.uniform(0.0, 0.08))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    DecisionLog(folder).close()
    there: set[str] = set()

    def take(_: str, record: AnyRecord) -> None:
        there.update([record.alarm_id] if isinstance(record, AnswerRecord) else [])

    chain = read_chain(folder, take)
    if chain.faults:
        return Outcome("wrong", str([found.line for found in chain.faults]))
    said = acknowledged.read_text().split("\n")[:-1] if acknowledged.exists() else []
    lost = set(said) - there
    return Outcome("lost", str(lost)) if lost else Outcome("harmless")


def _write_for_ever(folder: Path, acknowledged: Path) -> None:
    log = DecisionLog(folder)
    with acknowledged.open("a", encoding="utf-8") as file:
        for n in itertools.count():
            name = f"{os.getpid()}-{n}"
            asyncio.run(log.answer(name, "pi", True, "x" * 1500))
            file.write(f"{name}\n")
            file.flush()
