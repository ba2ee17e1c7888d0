"""Tables: every figure of the documents as flat rows, for CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from evaluation.documents import Comparisons, EvalReport


def tables(
    reports: Sequence[EvalReport], comparisons: Sequence[Comparisons]
) -> dict[str, pl.DataFrame]:
    """Name -> table: ``figures``, ``latency``, ``attacks``, ``operating_curves``, ``confusions``,
    ``comparisons``; a name is left out if it has no row."""
    rows: dict[str, list[dict[str, Any]]] = {
        "figures": [row for report in reports for row in _figures(report.model_dump())],
        "latency": [
            _of(report)
            | {"checkpoint_id": report.checkpoint_id, "checkpoint_bytes": report.checkpoint_bytes}
            | report.latency.model_dump()
            for report in reports
            if report.latency
        ],
        "attacks": [
            _of(report) | attack.model_dump()
            for report in reports
            for attack in report.detection.episodes
        ],
        "operating_curves": [
            _of(report)
            | {"scores": scores, "threshold": point.threshold}
            | {
                f"{name}{suffix}": getattr(getattr(point, name), bound)
                for name in (
                    *("false_alarms_per_hour", "clean_time_alarmed"),
                    *("detected_share", "median_delay_s"),
                )
                for suffix, bound in (("", "value"), ("_low", "low"), ("_high", "high"))
            }
            for report in reports
            for scores, points in (
                ("model", report.detection.operating_curve.points),
                ("random", report.detection.operating_curve.random),
            )
            for point in points
        ],
        "confusions": [
            _of(report) | {"actual": actual, "predicted": predicted, "windows": n}
            for report in reports
            for actual, counts in zip(report.classes, report.confusion.counts, strict=True)
            for predicted, n in zip(report.classes, counts, strict=True)
        ],
        "comparisons": [
            {"recipe": document.recipe, "question": family.name}
            | {k: v for k, v in c.model_dump().items() if not isinstance(v, dict | list)}
            | {"other_model": c.other.model, "other_mode": c.other.mode}
            for document in comparisons
            for family in document.families
            for c in family.comparisons
        ],
    }
    return {
        name: pl.DataFrame(listed, infer_schema_length=None).unique(maintain_order=True)
        for name, listed in rows.items()
        if listed
    }


def _of(report: EvalReport) -> dict[str, str]:
    return {"recipe": report.recipe, "model": report.model, "mode": report.mode}


def _figures(document: Any, path: str = "") -> Iterator[dict[str, Any]]:
    """Every figure of a document, with the place where it stands."""
    if isinstance(document, list):
        for each in document:
            yield from _figures(each, path)
    elif isinstance(document, dict) and "metric" in document:
        names = ("recipe", "model", "mode", "split", "metric", "value", "low", "high")
        where = "; ".join(f"{k} {v}" for k, v in document["where"].items())
        note = (document["note"] or {}).get("code")
        other = document.get("other") or dict.fromkeys(("model", "mode"))
        yield {
            "place": path, **{n: document[n] for n in names}, "where": where, "note": note,
            "other_model": other["model"], "other_mode": other["mode"],
        }  # fmt: skip
    elif isinstance(document, dict):
        for name, each in document.items():
            yield from _figures(each, f"{path}.{name}".lstrip("."))
