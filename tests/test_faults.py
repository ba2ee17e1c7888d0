"""A few of each fault that ``make faults`` does: nothing is lost, wrong, broken or hung."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.table import BAD, FAULTS, attempt, declared
from lab import once

declared()


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    base = once(tmp_path_factory, "faults", lambda _: None)
    fault = FAULTS[name]
    for number in range(fault.quick):
        outcome = attempt(fault, number, base, tmp_path / "try")
        assert outcome.verdict not in BAD, f"try {number}: {outcome.verdict}: {outcome.note}"
