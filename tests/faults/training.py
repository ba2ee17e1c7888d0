"""Faults of a machine that goes down while a net trains."""

from __future__ import annotations

import time
from pathlib import Path

from trainings import NETS, bookmark_in, build, fit, save_each_epoch

from faults.table import Bench, Outcome, fault
from faults.warm import Child, warm

LONGEST_S = 1.5
_EVERY_MODEL = "import importlib, models.registry; importlib.reload(models.registry)"


def train(folder: str, name: str, *resumable: str) -> None:
    """Train, in a process of its own, and write the weights."""
    model = build(name)
    save_each_epoch(setattr)
    fit(model, name, bookmark_in(Path(folder), name) if resumable else None)
    Path(folder, f"{name}.weights").write_bytes(model.to_sidecar())


def _started(folder: Path, name: str, *resumable: str) -> Child:
    words = (folder, name, *resumable)
    call = "faults.training:train"
    return warm().start(folder / "said", *words, call=call, prelude=_EVERY_MODEL)


def _undisturbed(folder: Path) -> None:
    for name in NETS:
        _started(folder, name).wait(120)


@fault("kill: a net while it trains", tries=20, quick=0)
def killed_training(bench: Bench) -> Outcome:
    """Killed up to three times at any moment, and begun again: it ends with the same weights."""
    name = bench.random.choice(NETS)
    for _ in range(bench.random.randint(1, 3)):
        child = _started(bench.folder, name, "resumable")
        time.sleep(bench.random.uniform(0.0, LONGEST_S))
        child.kill()
        child.wait()
    saved = bookmark_in(bench.folder, name).path.exists()
    expected = bench.made("undisturbed-trainings", _undisturbed) / f"{name}.weights"
    _started(bench.folder, name, "resumable").wait(120)
    equal = (bench.folder / f"{name}.weights").read_bytes() == expected.read_bytes()
    return Outcome("harmless" if equal else "wrong", f"{name}, resumed: {saved}")
