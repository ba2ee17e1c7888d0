"""Faults of a machine that goes down while a net trains."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from trainings import NETS, bookmark_in, build, fit, save_each_epoch

from faults.table import Bench, Outcome, fault

LONGEST_S = 1.5


def _child(folder: Path, name: str, *, resumable: bool) -> int:
    """Train in a process of its own, which writes the weights when it is done; returns its id."""
    model = build(name)  # before the fork: what it imports is imported once
    child = os.fork()
    if child:
        return child
    try:
        save_each_epoch(setattr)
        fit(model, name, bookmark_in(folder, name) if resumable else None)
        (folder / f"{name}.weights").write_bytes(model.to_sidecar())
    finally:
        os._exit(0)


def _weights(folder: Path, name: str, *, resumable: bool) -> bytes:
    os.waitpid(_child(folder, name, resumable=resumable), 0)
    return (folder / f"{name}.weights").read_bytes()


def _undisturbed(folder: Path) -> None:
    for name in NETS:
        _weights(folder, name, resumable=False)


@fault("kill: a net while it trains", tries=20, quick=0)
def killed_training(bench: Bench) -> Outcome:
    """Killed up to three times at any moment, and begun again: it ends with the same weights."""
    name = bench.random.choice(NETS)
    for _ in range(bench.random.randint(1, 3)):
        child = _child(bench.folder, name, resumable=True)
        time.sleep(bench.random.uniform(0.0, LONGEST_S))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    saved = bookmark_in(bench.folder, name).path.exists()
    expected = bench.made("undisturbed-trainings", _undisturbed) / f"{name}.weights"
    equal = _weights(bench.folder, name, resumable=True) == expected.read_bytes()
    return Outcome("harmless" if equal else "wrong", f"{name}, resumed: {saved}")
