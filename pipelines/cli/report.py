"""The command ``report``: the evaluation in the terminal, or as one JSON document."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pipelines.cli.console import (
    USAGE,
    ConfigOption,
    JsonOption,
    RunArtifactsOption,
    RunStoreOption,
    fail,
    failing,
    say_json,
    say_table,
    workspace_of,
)

if TYPE_CHECKING:
    from evaluation.documents import Comparisons, EvalReport, Figure
    from stages.report_page import Evaluated
    from stages.workspace import Workspace

_SHOWN = 4  # names per reason for leaving out
_COLUMNS = (
    *("model", "mode", "macro F1", "interval", "val F1", "detected", "delay s", "false/h", "ECE"),
    "",
)


def report(
    config: ConfigOption = None,
    store: RunStoreOption = None,
    artifacts: RunArtifactsOption = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="host, sample or time; repeat for several."),
    ] = None,
    mode: Annotated[
        str | None, typer.Option(metavar="NAME", help="realistic or oracle; default: both.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the leaderboard: models, baselines and warnings per recipe, and the page's path."""
    from datasets.splits import RECIPES
    from episodes.store import StoreError
    from features.registry import MODES

    for name in recipe or ():
        if name not in RECIPES:
            fail(f"recipe must be one of {', '.join(RECIPES)}, got {name!r}", USAGE)
    if mode is not None and mode not in MODES:
        fail(f"mode must be one of {', '.join(MODES)}, got {mode!r}", USAGE)
    workspace = workspace_of(config, store, artifacts, made=True)
    from stages.project import Project
    from stages.report_page import evaluated
    from stages.status import shortened

    project = Project(workspace)
    with failing({StoreError: USAGE}):
        current = evaluated(project, recipe or list(RECIPES))
    reports = [each for each in current.reports if mode in (None, each.mode)]
    current = replace(current, reports=reports)  # comparisons of a recipe stay whole
    if not current.reports:
        _explain_nothing(workspace, current, recipe)
    shown = {each.recipe for each in current.reports}
    stale = [
        {"recipe": due.key, "why": shortened([status.line for status in due.statuses])}
        for due in project.due("retrain")
        if due.key in shown
    ]
    if as_json:
        say_json(
            {
                "reports": [each.model_dump() for each in current.reports],
                "comparisons": [each.model_dump() for each in current.comparisons],
                "left_out": [status.as_row() for status in current.left_out],
                "stale": stale,
            }
        )
        return
    for name in recipe or RECIPES:
        reports = [each for each in current.reports if each.recipe == name]
        if reports:
            compared = [each for each in current.comparisons if each.recipe == name]
            _show(name, reports, compared[0] if compared else None)
    for line in _left_out(current):
        typer.echo(f"left out: {line}")
    for item in stale:
        typer.echo(
            f"stale: recipe {item['recipe']}: {item['why']}; phasewatch run --recipe "
            f"{item['recipe']}"
        )
    if workspace.report_page.exists():
        typer.echo(str(workspace.report_page))


def _left_out(current: "Evaluated") -> Iterator[str]:
    """What is not shown, one line per reason."""
    by_reason: dict[str, list[str]] = {}
    for item in current.left_out:
        name = item.stage.rpartition("/")[2]
        by_reason.setdefault(item.message, []).append(f"{name} ({item.key})")
    for why, names in by_reason.items():
        more = len(names) - _SHOWN
        yield f"{why}: {', '.join(names[:_SHOWN])}" + (f" and {more} more" if more > 0 else "")


def _explain_nothing(
    workspace: "Workspace", current: "Evaluated", recipes: list[str] | None
) -> NoReturn:
    remedy = " ".join(["phasewatch run", *(f"--recipe {name}" for name in recipes or ())])
    where = workspace.report_page.parent
    if current.left_out:
        listed = "\n".join(f"  {line}" for line in _left_out(current))
        fail(
            f"{where}: no evaluation is current:\n{listed}\nRun: {remedy}",
            left_out=[status.as_row() for status in current.left_out],
        )
    fail(f"{where}: nothing evaluated yet. Run: {remedy}")


def _show(recipe: str, reports: list["EvalReport"], compared: "Comparisons | None") -> None:
    from datasets.splits import RECIPES
    from evaluation import wording
    from features.registry import MODES

    first = reports[0]
    typer.echo(f"recipe {recipe}: {RECIPES[recipe]}")
    typer.echo(wording.conditional_on(first.bootstrap.conditional_on))
    picked = [wording.chosen(reports, mode, compared) for mode in MODES]
    rows = []
    for each in wording.by_test(reports):
        alarms = each.detection
        rows.append(
            (
                each.model,
                each.mode,
                *_figure(each.macro_f1),
                wording.number(each.val_macro_f1.value),
                f"{alarms.detected_episodes}/{alarms.attacked_episodes}",
                wording.measure(alarms.median_delay_s.value),
                wording.measure(alarms.false_alarms_per_hour.value),
                wording.number(each.calibration.as_trained.ece.value),
                "best on validation" if any(each is best for best in picked) else "",
            )
        )
    for name, modes, figure in _baselines(reports):
        label = wording.baseline_label(name)
        rows.append((label, modes, *_figure(figure), *[wording.NOTHING] * 5, "baseline"))
    say_table(_COLUMNS, rows)
    for text in (*wording.untested(first), *wording.gaps(first)):
        typer.echo(f"note: {text}")
    for models, text in wording.warnings(reports):
        typer.echo(f"warning: {models}: {text}")
    typer.echo()


def _figure(figure: "Figure") -> tuple[str, str]:
    from evaluation import wording

    return wording.number(figure.value), wording.span(figure) or wording.NOTHING


def _baselines(reports: list["EvalReport"]) -> list[tuple[str, str, "Figure"]]:
    """Each baseline's figure once, with the modes that have it."""
    by_figure: dict[tuple[str, float | None], tuple[list[str], Figure]] = {}
    for each in reports:
        for baseline in each.baselines:
            figure = baseline.macro_f1
            modes, _ = by_figure.setdefault((baseline.name, figure.value), ([], figure))
            if each.mode not in modes:
                modes.append(each.mode)
    return [(name, "/".join(modes), figure) for (name, _), (modes, figure) in by_figure.items()]
