"""The command ``report``: the evaluation in the terminal, or as one JSON document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from config.messages import shortened
from pipelines.cli import options
from pipelines.cli.console import (
    Document,
    Table,
    fail,
    one_of,
    workspace_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from evaluation.documents import CleanTime, Comparisons, EvalReport, Figure
    from stages.project import DueWork
    from stages.report_page import ComparableDocuments
    from stages.status import Status
    from stages.workspace import Workspace

_SHOWN = 4  # names per reason for leaving out
_COLUMNS = (
    *("model", "mode", "macro F1", "interval", "val F1", "detected", "delay s", "false/h"),
    *("alarmed", "ECE", ""),
)
_JOB_COLUMNS = (
    "clean time", "length", "false alarms", "per hour", "interval", "alarmed", "interval",
)  # fmt: skip
_LEGEND = (
    "interval: 95%, of the figure to its left. val F1: macro F1 on validation. delay s: median, "
    "in seconds. false/h: {rate}. ECE: expected calibration error."
)


@dataclass(frozen=True)
class ReportDocument(Document):
    """Reports and comparisons that are current, and what is not."""

    documents: ComparableDocuments
    unavailable: list[Status]
    stale: list[DueWork]
    page: Path | None

    def as_json(self) -> dict[str, Any]:
        return {
            "reports": [each.model_dump() for each in self.documents.reports],
            "comparisons": [each.model_dump() for each in self.documents.comparisons],
            "left_out": [status.as_row() for status in self.documents.left_out],
            "unavailable": [s.as_row() | {"message": s.message} for s in self.unavailable],
            "stale": [
                {"recipe": due.key, "why": shortened([status.line for status in due.statuses])}
                for due in self.stale
            ],
        }

    def text(self) -> Iterator[str | Table]:
        from datasets.splits import RECIPES

        for recipe in RECIPES:
            reports = [report for report in self.documents.reports if report.recipe == recipe]
            if reports:
                compared = (each for each in self.documents.comparisons if each.recipe == recipe)
                yield from _recipe(recipe, reports, next(compared, None))
        for status in self.unavailable:
            yield f"recipe {status.key} {status.message}"
        from evaluation.wording import RATE_MEANS

        yield _LEGEND.format(rate=RATE_MEANS) + "\n"
        for line in _left_out(self.documents.left_out):
            yield f"left out: {line}"
        for due in self.stale:
            why = shortened([status.line for status in due.statuses])
            yield f"recipe {due.key} is not current: {why}. Run: phasewatch run --recipe {due.key}"
        if self.page:
            yield str(self.page)


def report(
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
    recipe: options.Recipes = None,
    mode: Annotated[
        str | None, typer.Option(metavar="NAME", help="realistic or oracle; default: both.")
    ] = None,
) -> ReportDocument:
    """Print the leaderboard of each recipe, and the path of the page."""
    from datasets.splits import RECIPES
    from features.registry import MODES

    for name in recipe or ():
        one_of("recipe", name, RECIPES)
    if mode is not None:
        one_of("mode", mode, MODES)
    workspace = workspace_of(config, store, artifacts, must_exist=True)
    from stages.project import Project
    from stages.report_page import comparable_documents

    project = Project(workspace)
    found = comparable_documents(project, recipe or list(RECIPES))
    found = replace(found, reports=[each for each in found.reports if mode in (None, each.mode)])
    if not found.reports:
        _explain_nothing(workspace, found.left_out, recipe)
    shown = {each.recipe for each in found.reports}
    datasets = project.statuses(project.stages["datasets"], recipe)
    return ReportDocument(
        found,
        unavailable=[status for status in datasets if not status.available],
        stale=[due for due in project.due("retrain") if due.key in shown],
        page=workspace.report_page if workspace.report_page.exists() else None,
    )


def _left_out(statuses: list[Status]) -> Iterator[str]:
    """What is not shown, one line per reason."""
    by_reason: dict[str, list[str]] = {}
    for status in statuses:
        name = status.stage.rpartition("/")[2]
        by_reason.setdefault(status.message, []).append(f"{name} ({status.key})")
    for why, names in by_reason.items():
        yield f"{shortened(names, ', ', _SHOWN)}: {why}"


def _explain_nothing(
    workspace: Workspace, left_out: list[Status], recipes: list[str] | None
) -> NoReturn:
    remedy = " ".join(["phasewatch run", *(f"--recipe {name}" for name in recipes or ())])
    folder = workspace.report_page.parent
    if left_out:
        listed = "\n".join(f"  {line}" for line in _left_out(left_out))
        fail(
            f"{folder}: no evaluation is current:\n{listed}\nRun: {remedy}",
            left_out=[status.as_row() for status in left_out],
        )
    what = f"{' and '.join(recipes)} not evaluated yet" if recipes else "nothing evaluated yet"
    fail(f"{folder}: {what}. Run: {remedy}")


def _recipe(
    recipe: str, reports: list[EvalReport], compared: Comparisons | None
) -> Iterator[str | Table]:
    from datasets.splits import RECIPES
    from evaluation import ranking, wording
    from features.registry import MODES

    first = reports[0]
    yield f"recipe {recipe}: {RECIPES[recipe]}"
    yield wording.conditional_on(first.bootstrap.conditional_on)
    picked = [ranking.best_on_validation(reports, mode, compared) for mode in MODES]
    rows: list[tuple[str, ...]] = []
    for each in ranking.ranked_by_test(reports):
        alarms = each.detection
        rows.append(
            (
                each.model,
                each.mode,
                *_figure(each.macro_f1),
                wording.number(each.val_macro_f1.value),
                f"{alarms.detected_episodes}/{alarms.attacked_episodes}",
                wording.measure(alarms.median_delay_s.value),
                wording.rate(alarms.false_alarms_per_hour.value, alarms.clean_hours["test"]),
                wording.percent(alarms.clean_time_alarmed.value),
                wording.number(each.calibration.as_trained.ece.value),
                "best on validation" if any(each is best for best in picked) else "",
            )
        )
    for name, figure, modes in ranking.baseline_rows(reports):
        row = (wording.baseline_label(name), "/".join(modes), *_figure(figure))
        rows.append((*row, *[wording.NOTHING] * 6, "baseline"))
    yield Table(_COLUMNS, rows)
    best = picked[0]
    if best:
        yield ""
        yield f"{wording.variant_label(best)}, best on validation:"
        yield Table(_JOB_COLUMNS, [_by_job(part) for part in best.detection.by_job])
        yield ""
    for text in (*wording.untested(first), *wording.gaps(first)):
        yield f"note: {text}"
    if first.macro_f1.note:
        yield f"note: {wording.sentence(first.macro_f1.note)}"
    for models, text in wording.warnings(reports):
        yield f"warning: {models}: {text}"
    yield ""


def _by_job(part: CleanTime) -> tuple[str, ...]:
    """The alarms in a part of clean time."""
    from evaluation import wording

    if not part.hours:
        return (wording.job_label(part.job), "none", *[wording.NOTHING] * 5)
    per_hour, alarmed = part.false_alarms_per_hour, part.clean_time_alarmed
    long = part.hours >= wording.SHORT_HOURS
    return (
        wording.job_label(part.job),
        wording.clean_time(part.hours, ""),
        str(part.false_alarms),
        wording.measure(per_hour.value) if long else wording.NOTHING,
        wording.rate_span(per_hour, part.hours) or wording.NOTHING,
        wording.percent(alarmed.value),
        wording.share_span(alarmed) or wording.NOTHING,
    )


def _figure(figure: Figure) -> tuple[str, str]:
    from evaluation import wording

    return wording.number(figure.value), wording.span(figure) or wording.NOTHING
