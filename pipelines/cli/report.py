"""The command ``report``: what has been evaluated, in the terminal or as one JSON document."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

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
    from stages.report_page import Evaluated
    from stages.workspace import Workspace

_SHOWN = 4  # names of what is left out for one reason
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
    """Print the leaderboard: models, baselines and warnings by recipe, and where the page is."""
    from datasets.splits import RECIPES
    from episodes.store import StoreError
    from features.registry import MODES

    for name in recipe or ():
        if name not in RECIPES:
            fail(f"no recipe {name!r}; there is {', '.join(RECIPES)}", USAGE)
    if mode is not None and mode not in MODES:
        fail(f"no mode {mode!r}; there is {', '.join(MODES)}", USAGE)
    workspace = workspace_of(config, store, artifacts, made=True)
    from stages.project import Project
    from stages.report_page import evaluated
    from stages.status import shortened

    project = Project(workspace)
    with failing({StoreError: USAGE}):
        found = evaluated(project, recipe or list(RECIPES))
    found = _restricted(found, mode)
    if not found.reports:
        _explain_nothing(workspace, found, recipe)
    shown = {each["recipe"] for each in found.reports}
    stale = [
        {"recipe": due.key, "why": shortened([status.line for status in due.statuses])}
        for due in project.due("retrain")
        if due.key in shown
    ]
    if as_json:
        say_json(
            {
                "reports": found.reports,
                "comparisons": found.comparisons,
                "left_out": [status.as_row() for status in found.left_out],
                "stale": stale,
            }
        )
        return
    for name in recipe or RECIPES:
        reports = [each for each in found.reports if each["recipe"] == name]
        if reports:
            compared = [each for each in found.comparisons if each["recipe"] == name]
            _show(name, reports, compared[0] if compared else None)
    for line in _left_out(found):
        typer.echo(f"left out: {line}")
    for item in stale:
        typer.echo(
            f"stale: recipe {item['recipe']}: {item['why']}; phasewatch run --recipe "
            f"{item['recipe']}"
        )
    if workspace.report_page.exists():
        typer.echo(str(workspace.report_page))


def _restricted(found: "Evaluated", mode: str | None) -> "Evaluated":
    """The reports of one mode; comparisons are of a whole recipe and stay whole."""
    reports = [each for each in found.reports if mode in (None, each["mode"])]
    return replace(found, reports=reports)


def _left_out(found: "Evaluated") -> Iterator[str]:
    """What is not shown, by the reason; of many the first few."""
    by_reason: dict[str, list[str]] = {}
    for item in found.left_out:
        name = item.stage.rpartition("/")[2]
        by_reason.setdefault(item.message, []).append(f"{name} ({item.key})")
    for why, names in by_reason.items():
        more = len(names) - _SHOWN
        yield f"{why}: {', '.join(names[:_SHOWN])}" + (f" and {more} more" if more > 0 else "")


def _explain_nothing(
    workspace: "Workspace", found: "Evaluated", recipes: list[str] | None
) -> NoReturn:
    remedy = " ".join(["phasewatch run", *(f"--recipe {name}" for name in recipes or ())])
    where = workspace.report_page.parent
    if found.left_out:
        listed = "\n".join(f"  {line}" for line in _left_out(found))
        fail(
            f"{where}: nothing that has been evaluated is current:\n{listed}\nRun: {remedy}",
            left_out=[status.as_row() for status in found.left_out],
        )
    fail(f"{where}: nothing has been evaluated yet. Run: {remedy}")


def _show(recipe: str, reports: list[dict[str, Any]], compared: dict[str, Any] | None) -> None:
    from datasets.splits import RECIPES
    from evaluation import wording
    from features.registry import MODES

    first = reports[0]
    typer.echo(f"recipe {recipe}: {RECIPES[recipe]}")
    typer.echo(first["bootstrap"]["conditional_on"]["text"])
    picked = [wording.chosen(reports, mode, compared) for mode in MODES]
    rows = []
    for each in wording.by_test(reports):
        alarms = each["detection"]
        rows.append(
            (
                each["model"],
                each["mode"],
                *_figure(each["macro_f1"]),
                wording.number(each["val_macro_f1"]["value"]),
                f"{alarms['detected_episodes']}/{alarms['attacked_episodes']}",
                wording.measure(alarms["median_delay_s"]["value"]),
                wording.measure(alarms["false_alarms_per_hour"]["value"]),
                wording.number(each["calibration"]["as_trained"]["ece"]["value"]),
                "best on validation" if any(each is best for best in picked) else "",
            )
        )
    for name, modes, figure in _baselines(reports):
        label = wording.baseline_label(name)
        rows.append((label, modes, *_figure(figure), *[wording.NOTHING] * 5, "baseline"))
    say_table(_COLUMNS, rows)
    for text in (*wording.untested(first), *wording.gaps(first)):
        typer.echo(f"note: {text}")
    for concerned, text in wording.warnings(reports):
        typer.echo(f"warning: {concerned}: {text}")
    typer.echo()


def _figure(figure: dict[str, Any]) -> tuple[str, str]:
    from evaluation import wording

    return wording.number(figure["value"]), wording.span(figure) or wording.NOTHING


def _baselines(reports: list[dict[str, Any]]) -> list[tuple[str, str, dict[str, Any]]]:
    """Each baseline's figure once, with the modes that have it."""
    found: dict[tuple[str, Any], tuple[list[str], dict[str, Any]]] = {}
    for each in reports:
        for baseline in each["baselines"]:
            figure = baseline["macro_f1"]
            modes, _ = found.setdefault((baseline["name"], figure["value"]), ([], figure))
            if each["mode"] not in modes:
                modes.append(each["mode"])
    return [(name, "/".join(modes), figure) for (name, _), (modes, figure) in found.items()]
