"""Which of several reports or baselines comes first, for whoever shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from evaluation.documents import Comparisons, EvalReport, Figure
from evaluation.scores import SHORTCUTS


def baseline_rows(reports: Iterable[EvalReport]) -> list[tuple[str, Figure, list[str]]]:
    """Each baseline's figure once, with the modes that have it; the best first, as models are."""
    rows: dict[tuple[Any, ...], tuple[str, Figure, list[str]]] = {}
    for report in reports:
        for each in report.baselines:
            figure = each.macro_f1
            key = (each.name, figure.value, figure.low, figure.high)
            modes = rows.setdefault(key, (each.name, figure, []))[2]
            modes += [report.mode] if report.mode not in modes else []
    return sorted(rows.values(), key=lambda row: _rank(row[1]))


def below_shortcut(report: EvalReport) -> list[str]:
    """Shortcuts that the report's model does not beat significantly, by name."""
    return [
        baseline.name
        for baseline in report.baselines
        if baseline.name in SHORTCUTS and not (baseline.difference.low or 0) > 0
    ]


def best_on_validation(
    reports: Sequence[EvalReport], mode: str, comparisons: Comparisons | None
) -> EvalReport | None:
    """The report on the model that is best on validation, of one recipe and mode.

    Choosing on test would flatter the chosen one.
    """
    of_mode = [report for report in reports if report.mode == mode]
    for family in comparisons.families if comparisons else ():
        if family.name == "reference" and family.mode == mode and family.reference:
            for report in of_mode:
                if report.model == family.reference.model:
                    return report
    known = [report for report in of_mode if report.val_macro_f1.value is not None]
    return min(known, key=lambda report: _rank(report.val_macro_f1), default=None)


def ranked_by_test(reports: Iterable[EvalReport]) -> list[EvalReport]:
    """From the highest macro F1 on test; those without one last."""
    return sorted(reports, key=lambda report: _rank(report.macro_f1))


def _rank(figure: Figure) -> float:
    """The highest value comes first, none comes last."""
    return 1.0 if figure.value is None else -figure.value
