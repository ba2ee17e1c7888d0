"""A few of each fault that ``make faults`` does: nothing is lost, wrong, broken or hung."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from faults.table import BAD, FAULTS, declared, tried
from lab import once

declared()


@pytest.fixture(scope="module")
def worker() -> Iterator[ProcessPoolExecutor]:
    """A process that did nothing else: faults fork, and threads of libraries do not come along."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.quick])
def test_fault(
    name: str, worker: ProcessPoolExecutor, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = once(tmp_path_factory, "faults", lambda _: None)
    for number in range(FAULTS[name].quick):
        outcome, _ = worker.submit(tried, name, number, base).result()
        assert outcome.verdict not in BAD, f"try {number}: {outcome.verdict}: {outcome.note}"
