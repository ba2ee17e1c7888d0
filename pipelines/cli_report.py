"""The command ``report``: what has been evaluated, in the terminal or as one JSON document."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pipelines.console import (
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
    from resources.evaluated import Evaluated
    from resources.workspace import Workspace

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
    from episodes.store import StoreError
    from evaluation.datasets import RECIPES
    from features.registry import MODES

    for name in recipe or ():
        if name not in RECIPES:
            fail(f"no recipe {name!r}; there is {', '.join(RECIPES)}", USAGE)
    if mode is not None and mode not in MODES:
        fail(f"no mode {mode!r}; there is {', '.join(MODES)}", USAGE)
    workspace = workspace_of(config, store, artifacts, made=True)
    from pipelines.staleness import stale_recipes
    from resources.evaluated import evaluated

    with failing({StoreError: USAGE}):
        found = evaluated(workspace)
        listing = workspace.listing()
    found = _restricted(found, recipe or list(RECIPES), mode)
    if not found.reports:
        _explain_nothing(workspace, found, recipe)
    shown = {each["recipe"] for each in found.reports}
    stale = [
        {"recipe": work.partition, "why": work.why}
        for work in stale_recipes(workspace, listing)
        if work.partition in shown
    ]
    if as_json:
        say_json(
            {
                "reports": found.reports,
                "comparisons": found.comparisons,
                "left_out": found.left_out,
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


def _restricted(found: "Evaluated", recipes: list[str], mode: str | None) -> "Evaluated":
    """What the options ask for; comparisons are of a whole recipe and stay whole."""
    from dataclasses import replace

    return replace(
        found,
        reports=[
            each
            for each in found.reports
            if each["recipe"] in recipes and mode in (None, each["mode"])
        ],
        comparisons=[each for each in found.comparisons if each["recipe"] in recipes],
        left_out=[each for each in found.left_out if each["recipe"] in recipes],
    )


def _left_out(found: "Evaluated") -> Iterator[str]:
    """What is not shown, by the reason; of many the first few."""
    by_reason: dict[str, list[str]] = {}
    for item in found.left_out:
        by_reason.setdefault(item["why"], []).append(f"{item['name']} ({item['recipe']})")
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
            f"{where}: nothing that has been evaluated is current:\n{listed}\n"
            f"Make it anew: {remedy}",
            left_out=found.left_out,
        )
    fail(f"{where}: nothing has been evaluated yet. Do: {remedy}")


def _show(recipe: str, reports: list[dict[str, Any]], compared: dict[str, Any] | None) -> None:
    from evaluation import wording
    from evaluation.datasets import RECIPES
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
