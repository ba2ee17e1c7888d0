"""What operators answered, as it is counted: the asset and the page. The log is ``test_hub``'s."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import Lab, failure, materialized

from evaluation.decisions import AnswerRecord, DecisionRecord, LogRecord, read_log, tally
from stages.registry import STAGES


def decision(
    name: str, model: str = "gbt", source: str = "live", phase: str | None = "clean"
) -> DecisionRecord:
    event = {"host": "pi", "model": model, "source": source, "phase": phase, "alarm_id": name}
    return DecisionRecord(at=0.0, event=event)


def answer(name: str, verdict: bool) -> AnswerRecord:
    return AnswerRecord(at=0.0, alarm_id=name, host="pi", verdict=verdict)


RECORDS: list[LogRecord] = [
    *(decision(name) for name in ("a", "b", "c", "d", "a")),
    decision("e", "cnn"),
    decision("r", source="replay"),
    decision("s", phase=None),
    answer("a", True), answer("b", False), answer("c", False), answer("c", True),
    answer("r", True), answer("gone", True),
]  # fmt: skip


def write(folder: Path) -> None:
    """Over two days, the second with a line that is none."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [record.model_dump_json(exclude_none=True) + "\n" for record in RECORDS]
    (folder / "2026-11-02.jsonl").write_text("".join(lines[:9]))
    (folder / "2026-11-03.jsonl").write_text("".join(["{}\n", *lines[9:]]))


def test_alarms_are_counted_once_and_by_their_last_answer(tmp_path: Path) -> None:
    write(tmp_path)
    counted = tally(read_log(tmp_path))
    rows = {
        (row.model, row.source, row.silence): (row.alarms, row.answered, row.true, row.precision)
        for row in counted.by_model
    }
    assert rows == {
        ("cnn", "live", False): (1, 0, 0, None),
        ("gbt", "live", False): (4, 3, 2, pytest.approx(2 / 3)),
        ("gbt", "live", True): (1, 0, 0, None),
        ("gbt", "replay", False): (1, 1, 1, 1.0),
    }
    assert (counted.alarms, counted.answered, counted.true) == (7, 4, 3)
    assert counted.precision == pytest.approx(2 / 3)
    assert counted.unreadable == ["2026-11-03.jsonl:1"]


def test_an_empty_log_has_no_precision(tmp_path: Path) -> None:
    counted = tally(read_log(tmp_path / "none"))
    assert (counted.alarms, counted.precision, counted.by_model) == (0, None, [])


def test_only_the_page_shows_it() -> None:
    """Nothing is trained or tested on what operators answered."""
    assert [name for name, stage in STAGES.items() if "decisions" in stage.inputs] == ["report"]
    assert not STAGES["decisions"].automatic


@pytest.mark.slow
def test_the_asset_and_the_page_count_the_log(retrained: Lab) -> None:
    page = retrained.workspace.report_page
    retrained.project.make(STAGES["report"], "")
    assert "log of decisions has no alarm yet" in page.read_text()
    result = retrained.execute("decisions", "")  # before the hub wrote anything
    assert result.success, failure(result)
    assert materialized(result)["decisions"]["alarms"] == 0
    write(retrained.workspace.decisions_folder)
    assert retrained.project.status(STAGES["report"], "").code == "contents"
    result = retrained.execute("decisions", "")
    assert result.success, failure(result)
    facts = materialized(result)["decisions"]
    assert (facts["alarms"], facts["answered"], facts["true"]) == (7, 4, 3)
    assert facts["precision"] == pytest.approx(2 / 3)
    assert retrained.project.status(STAGES["decisions"], "", verify=True).current
    retrained.project.make(STAGES["report"], "")
    assert "66.7%" in page.read_text()
