"""Faults of two commands at once: both end well or are refused, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

from faults.kills import HOMELESS, INGEST, addressed, ingested, lab_at, whole
from faults.table import Bench, Outcome, Ran, fault
from faults.warm import warm


def _both(
    bench: Bench, *commands: tuple[str | Path, ...], prelude: str = ""
) -> tuple[list[Ran], Outcome | None]:
    """Run commands side by side, each begun a little after the one before."""
    said, children = bench.folder / "said", []
    for words in commands:
        late = f"import time; time.sleep({bench.random.choice((0, 0, 0.02, 0.1, 0.4))})\n"
        children.append(warm().start(said, *words, env=HOMELESS, prelude=late + prelude))
    ran = [child.wait(120) for child in children]
    return ran, next((one.broken for one in ran if one.broken), None)


def _failed(ran: list[Ran]) -> str:
    return "\n".join(f"{one.code}: {one.err[-700:]}" for one in ran if one.code)


@fault("race: two first runs", tries=8, quick=0)
def first_runs(bench: Bench) -> Outcome:
    """On a fresh home, without artifacts."""
    expected = ingested(bench)
    root, said = bench.copy(expected["folder"]), bench.folder / "said"
    first = bench.random.choice((("sync",), INGEST, ("doctor",)))
    ran, broken = _both(bench, (*first, *addressed(root)), (*INGEST, *addressed(root)))
    if broken:
        return broken
    if ran[1].code or (ran[0].code and first != ("doctor",)):
        return Outcome("lost", _failed(ran))
    ran = [warm().start(said, *INGEST, *addressed(root), env=HOMELESS).wait(60)]
    if ran[0].code:
        return Outcome("lost", _failed(ran))
    told = json.loads(warm().start(said, root, call="faults.kills:told_of_ingest").wait(60).out)
    right = told["made"] == expected["made"] and set(told["states"]) == {"SUCCESS"}
    return Outcome("harmless" if right else "wrong", str(told))


@fault("race: two exclusions", tries=20, quick=0)
def exclusions(bench: Bench) -> Outcome:
    root = bench.copy(ingested(bench)["folder"])
    episodes = [added.episode_id for added in lab_at(root).store.added[:2]]
    ran, broken = _both(
        bench,
        *(("exclude", each, "--reason", "x", "--who", "y", *addressed(root)) for each in episodes),
    )
    if broken or any(one.code for one in ran):
        return broken or Outcome("lost", _failed(ran))
    text = (root / "artifacts" / "exclusions.yaml").read_text(encoding="utf-8")
    lost = [each for each in episodes if each not in text]
    return Outcome("lost" if lost else "harmless", str(lost))


PAIRS: dict[str, tuple[tuple[str, ...], ...]] = {
    "the same --out": (("predict", "{batch}", "--out", "{root}/x.jsonl"),) * 2,
    "the same bundle": (("bundle", "--out", "{root}/bundle"),) * 2,
    "two rollbacks": (("rollback",),) * 2,
    "pruning and scoring": (("prune", "--older-than", "1d"), ("predict", "{batch}")),
    "doctor and pruning": (("doctor",), ("prune", "--older-than", "1d")),
}


@fault("race: two commands", tries=22, quick=1)
def commands(bench: Bench) -> Outcome:
    """What is there before both is there after both, as it was written."""
    root = bench.copy(whole(bench))
    name = bench.random.choice(sorted(PAIRS))
    batch = next(iter(lab_at(root).workspace.listing().batches))
    pair = [
        (*(word.format(root=root, batch=batch) for word in words), *addressed(root))
        for words in PAIRS[name]
    ]
    ran, broken = _both(bench, *pair)
    if broken:
        return broken
    refused = [one for one in ran if one.code]
    if any(one.code not in (1, 2) or not one.err.strip() for one in refused):
        said = [f"{one.code} {one.err}" for one in refused]
        if "doctor" not in name:
            return Outcome("wrong", f"{name}: {said}")
    said = bench.folder / "said"
    told = warm().start(said, root, call="faults.kills:told_of_all").wait(60)
    if told.code:
        return Outcome("lost", f"{name}: {told.err[-1500:]}")
    damaged = {key: code for key, code in json.loads(told.out).items() if code == "damaged"}
    return Outcome("lost" if damaged else "harmless", f"{name}: {damaged} {_failed(ran)}")
