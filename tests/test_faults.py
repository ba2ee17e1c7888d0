"""A few of each fault that ``make faults`` does: nothing is lost, wrong, broken or hung."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context

import pytest
from faults.table import BAD, FAULTS, declared, tried
from lab import once

declared()


@pytest.fixture(scope="module")
def worker_of() -> Iterator[Callable[[str], ProcessPoolExecutor]]:
    """Fault -> a process that did no other module's faults.

    Faults fork, and the threads that a library started for others do not come along.
    """
    started: dict[str, ProcessPoolExecutor] = {}
    with ExitStack() as stack:

        def of(name: str) -> ProcessPoolExecutor:
            module = FAULTS[name].do.__module__
            if module not in started:
                stack.close()  # one at a time
                started.clear()
                pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
                started[module] = stack.enter_context(pool)
            return started[module]

        yield of


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.quick])
def test_fault(
    name: str,
    worker_of: Callable[[str], ProcessPoolExecutor],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    base = once(tmp_path_factory, "faults", lambda _: None)
    for number in range(FAULTS[name].quick):
        outcome, _ = worker_of(name).submit(tried, name, number, base).result()
        assert outcome.verdict not in BAD, f"try {number}: {outcome.verdict}: {outcome.note}"
