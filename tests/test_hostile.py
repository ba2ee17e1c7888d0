"""Commands on what strangers wrote: within the limits of memory and time, and never a guess."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
from builders import pack
from faults.archives import CRAFTED, ID, LIMITS, good
from tiny import N_CLASSES, fitted

from episodes.format import ARCHIVE_SUFFIX
from models.base import NotFiniteError
from models.registry import Variant
from pipelines.cli.console import FAILED, exit_code_of

MEASURED = """
import os, subprocess, sys
running = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, used = os.wait4(running.pid, 0)
print(os.waitstatus_to_exitcode(status), 1024 * used.ru_maxrss, used.ru_utime + used.ru_stime)
"""
"""Started by a small process: Linux counts to a program what its parent held when it began."""


def validated(path: Path, content: bytes) -> tuple[int, float]:
    """Run ``phasewatch validate`` on an archive; bytes and seconds that all of the process took."""
    path.write_bytes(content)
    command = ("-m", "pipelines.cli.app", "validate", str(path), "--json")
    measured = subprocess.run(
        [sys.executable, "-S", "-c", MEASURED, sys.executable, *command],
        capture_output=True,
        text=True,
        check=True,
    )
    code, n_bytes, seconds = measured.stdout.split()
    assert code == "0"
    return int(n_bytes), float(seconds)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Kernels are in the cache: compiling them, once, takes longer than any archive."""
    validated(tmp_path_factory.mktemp("good") / f"{ID}{ARCHIVE_SUFFIX}", pack(ID, good()))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    "label",
    [
        "60 MiB of newlines in telemetry-guest.jsonl",
        "wide rows: lists",
        "slow rows in every source",
        "the largest window and a GiB less a block",
        "hours of few rows",
    ],
)
def test_the_worst_archives_are_judged_in_512_megabytes_and_10_seconds(
    label: str, tmp_path: Path
) -> None:
    """All of the process counts: Python, its libraries and the archive."""
    content = CRAFTED[label][0](Random(0))
    n_bytes, seconds = validated(tmp_path / f"{ID}{ARCHIVE_SUFFIX}", content)
    assert n_bytes <= LIMITS.most_bytes
    assert seconds <= LIMITS.cpu_s


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_probability_that_is_no_number_is_no_phase(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fitted(Variant("knn", "realistic"))
    X = np.zeros((3, model.n_inputs_ or 0), dtype=np.float32)

    def one_odd(rows: np.ndarray) -> np.ndarray:
        proba = np.full((len(rows), N_CLASSES), 1 / N_CLASSES, dtype=np.float32)
        proba[1, 2] = value
        return proba

    assert np.all(np.isfinite(model.predict_proba(X)))
    monkeypatch.setattr(model, "_predict_proba", one_odd)
    with pytest.raises(NotFiniteError, match="1 of 3 windows") as caught:
        model.predict_proba(X)
    assert exit_code_of(caught.value) == FAILED
