"""The report page: one self-contained HTML file from the eval reports of all checkpoints.

Arranges and words what ``documents.evaluate`` computed; computes no metric. Layout, styles and SVG
are in ``templates/``. The same input gives the same bytes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from evaluation.datasets import RECIPES, SPLITS
from evaluation.figures import REPORT_SCHEMA
from evaluation.scores import SHORTCUTS
from features.registry import LAYOUT, MODES
from models.registry import MODELS, VARIANTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Report = Mapping[str, Any]
    View = dict[str, Any]

TEMPLATES = Path(__file__).parent / "templates"
SHORT_ID = 12  # characters of a hash that are shown; the whole is in its title
LOW_COVERAGE = 0.5
BASELINES = {
    "position_only": "knows only when a window lies in its episode: what it scores, the schedule "
    "gives away for free.",
    "missingness_only": "knows only which collectors ran: what it scores, gaps in the recording "
    "give away.",
    "prior": "guesses phases as often as training has them; its line spans the luck of guessing.",
    "uniform": "guesses each phase equally often; its line, too, spans that luck.",
}
COVERAGE_GAP = 0.1  # between training and test: from here on it may pass for a difference of hosts
NOTHING = "–"


def render_report(
    reports: Sequence[Report],
    facts: Mapping[str, Any],
    comparisons: Sequence[Mapping[str, Any]] = (),  # noqa: ARG001  (not on the page yet)
) -> str:
    """The page, as text.

    Args:
        reports: what ``documents.evaluate`` returned, one a checkpoint and recipe, in any order.
        facts: ``store``, ``episodes``, ``verdicts`` (verdict -> episodes), ``code_commit`` and
            ``generated_from`` (data versions).
        comparisons: what ``comparisons.compare`` returned, one a recipe.

    Raises:
        ValueError: a report has another schema, or two are of one model, mode and recipe.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "num": number,
        "signed": lambda value: number(value, sign=True),
        "count": count,
        "short": short,
        "pct": percent,
        "plural": plural,
        "join_words": join_words,
    }
    environment.tests["finite"] = finite
    return environment.get_template("report.html.j2").render(view(reports, facts))


# --- wording ------------------------------------------------------------------------------------


def finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def number(value: float | None, *, sign: bool = False) -> str:
    """Three decimals and a real minus; a dash where there is no finite value."""
    if value is None or not math.isfinite(value):
        return NOTHING
    rounded = round(value, 3) + 0.0  # no negative zero
    return f"{rounded:{'+' if sign else ''}.3f}".replace("-", "−")


def count(value: int | None) -> str:
    """An integer with thin spaces between thousands; a dash for none."""
    return NOTHING if value is None else f"{value:,}".replace(",", "\u202f")


def short(value: str) -> str:
    """The beginning of a hash; that a tree was dirty stays visible."""
    text = str(value)
    return text[:SHORT_ID] + ("-dirty" if text.endswith("-dirty") else "")


def percent(value: float | None) -> str:
    """A place on the axis from 0 to 1, as SVG and CSS want it."""
    if value is None or not math.isfinite(value):
        return "0%"
    return f"{100 * min(1.0, max(0.0, value)):.2f}%"


def plural(n: int, one: str, many: str = "") -> str:
    """``3 hosts``; ``many`` where it is not ``one`` with an s."""
    return f"{count(n)} {one if n == 1 else many or one + 's'}"


def join_words(words: Iterable[str]) -> str:
    """``a, b and c``."""
    *first, last = list(words) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def baseline_label(name: str) -> str:
    return name.replace("_", "-")


def coverage_of_profiles(report: Report) -> str:
    """``5 of 6 profiles tested; scan-and-dial was never tested.``"""
    tested, untested = report["tested_profiles"], report["untested_profiles"]
    total = len(tested) + len(untested)
    if not untested:
        return f"All {plural(total, 'profile')} tested."
    verb = "was" if len(untested) == 1 else "were"
    return (
        f"{len(tested)} of {plural(total, 'profile')} tested; "
        f"{join_words(untested)} {verb} never tested."
    )


def untested(report: Report) -> list[str]:
    """What the figures of a report do not speak of, or not of real machines; a sentence each."""
    said = [coverage_of_profiles(report)]
    if report["absent_classes"]:
        absent = report["absent_classes"]
        noun, verb = ("Phase", "is") if len(absent) == 1 else ("Phases", "are")
        said.append(
            f"{noun} {join_words(absent)} {verb} absent from the test set: never tested, and no "
            "part of any mean."
        )
    splits = report["splits"]
    where = [
        f"{count(side['synthetic_episodes'])} of {count(side['episodes'])} in {name}"
        for name, side in splits.items()
        if side["synthetic_episodes"]
    ]
    if where:
        said.append(f"Synthetic episodes are part of this dataset: {join_words(where)}.")
    return said


def gaps(report: Report) -> list[str]:
    """What was recorded or used unevenly, a sentence each."""
    said = []
    splits = report["splits"]
    for source, covered in splits["test"]["coverage"].items():
        trained = splits["train"]["coverage"].get(source)
        if trained is not None and abs(covered - trained) > COVERAGE_GAP:
            said.append(
                f"{source} covers {number(trained)} of training and {number(covered)} of test: a "
                "difference in what was recorded can pass for one in behaviour."
            )
        elif covered < LOW_COVERAGE:
            said.append(f"{source} covers only {number(covered)} of the test windows.")
    if report["excluded_episodes"]:
        why = "; ".join(f"{count(n)} {cause}" for cause, n in report["excluded_episodes"].items())
        total = sum(report["excluded_episodes"].values())
        said.append(f"{plural(total, 'episode')} left out ({why}).")
    lacking = report["bootstrap"]["replicates_lacking_a_class"]
    if lacking:
        said.append(
            f"In {count(lacking)} of {count(report['bootstrap']['replicates'])} replicates some "
            "phase did not occur; it is then left out of that replicate's mean."
        )
    return said


def other_warnings(report: Report) -> list[str]:
    """Warnings of a report that ``untested`` does not already say."""
    said = [f"Profile {profile} was never tested" for profile in report["untested_profiles"]]
    said += [f"Phase {phase} is absent" for phase in report["absent_classes"]]
    synthetic = sum(side["synthetic_episodes"] for side in report["splits"].values())
    said += [f"{synthetic} synthetic episodes"] if synthetic else []
    return [text for text in report["warnings"] if not text.startswith(tuple(said))]


# --- arranging ----------------------------------------------------------------------------------


def view(reports: Sequence[Report], facts: Mapping[str, Any]) -> View:
    """Everything the template shows, in the order in which it is shown."""
    by_key = _by_key(reports)
    modes = _ordered(MODES, (mode for _, mode, _ in by_key))
    recipes = _ordered(RECIPES, (recipe for _, _, recipe in by_key))
    models = _ordered(MODELS, (model for model, _, _ in by_key))
    models = _ranked(models, modes, recipes, by_key)
    wanted = {(v.model, v.mode) for v in VARIANTS} | {(m, mode) for m, mode, _ in by_key}
    levels = sorted({report["macro_f1"]["level"] for report in by_key.values()})
    return {
        "modes": [
            {
                "name": mode,
                "mark": i % 4,
                "channels": int(LAYOUT.keep_mask(mode, "tensor").sum()) if mode in MODES else None,
            }
            for i, mode in enumerate(modes)
        ],
        "recipes": [
            _recipe(recipe, models, modes, wanted, by_key, first=recipe == recipes[0])
            for recipe in recipes
        ],
        "models": [_model(model, modes, recipes, wanted, by_key) for model in models],
        "n_reports": len(by_key),
        "evaluated": [recipe for recipe in recipes if any(key[2] == recipe for key in by_key)],
        "window_s": LAYOUT.window.length_ms / 1000,
        "level": join_words(f"{100 * level:g} %" for level in levels) or "95 %",
        "bootstraps": sorted(
            {
                (report["bootstrap"]["replicates"], report["bootstrap"]["seed"])
                for report in by_key.values()
            }
        ),
        "provenance": [
            by_key[model, mode, recipe]
            for recipe in recipes
            for model in models
            for mode in modes
            if (model, mode, recipe) in by_key
        ],
        "shortcuts": [baseline_label(name) for name in SHORTCUTS],
        "baselines": [(baseline_label(name), words) for name, words in BASELINES.items()],
        "facts": {
            "store": facts["store"],
            "episodes": facts["episodes"],
            "verdicts": sorted(facts["verdicts"].items()),
            "code_commit": facts["code_commit"],
            "generated_from": list(facts["generated_from"]),
        },
        "nothing": NOTHING,
    }


def _by_key(reports: Sequence[Report]) -> dict[tuple[str, str, str], Report]:
    found: dict[tuple[str, str, str], Report] = {}
    for report in reports:
        if report.get("schema") != REPORT_SCHEMA:
            raise ValueError(
                f"report page: a report has schema {report.get('schema')!r}, this page reads "
                f"{REPORT_SCHEMA!r}; evaluate the checkpoint again"
            )
        key = (report["model"], report["mode"], report["recipe"])
        if key in found:
            raise ValueError(
                f"report page: two reports of {key[0]}_{key[1]}, recipe {key[2]} (checkpoints "
                f"{short(found[key]['checkpoint_id'])}, {short(report['checkpoint_id'])}); "
                "pass one"
            )
        found[key] = _flat(report)
    return found


def _flat(report: Report) -> Report:
    """The report with plain numbers where the page shows a figure without its interval."""
    groups = {
        key: [row | {"macro_f1": row["macro_f1"]["value"]} for row in report[key]]
        for key in ("per_profile", "per_host")
    }
    rates = [
        row | {name: row[name]["value"] for name in ("precision", "recall")}
        for row in report["per_class"]
    ]
    val = report["val_macro_f1"]["value"]
    return {**report, **groups, "per_class": rates, "val_macro_f1": val}


def _ordered(known: Iterable[str], found: Iterable[str]) -> list[str]:
    """The registry's order, then what the registry does not know, by name."""
    first = list(known)
    return first + sorted(set(found) - set(first))


def _ranked(
    models: list[str],
    modes: list[str],
    recipes: list[str],
    by_key: Mapping[tuple[str, str, str], Report],
) -> list[str]:
    """Models by macro F1 in the first recipe and mode that they were evaluated in."""

    def rank(model: str) -> tuple[float, ...]:
        return tuple(
            -by_key[model, mode, recipe]["macro_f1"]["value"]
            if (model, mode, recipe) in by_key
            else 1.0
            for recipe in recipes
            for mode in modes
        )

    return sorted(models, key=rank)


def _below_shortcut(report: Report) -> list[str]:
    """Baselines that the report's model does not beat beyond chance."""
    return [
        baseline_label(baseline["name"])
        for baseline in report["baselines"]
        if baseline["name"] in SHORTCUTS and not baseline["difference"]["low"] > 0
    ]


def _recipe(
    recipe: str,
    models: list[str],
    modes: list[str],
    wanted: set[tuple[str, str]],
    by_key: Mapping[tuple[str, str, str], Report],
    *,
    first: bool,
) -> View:
    here = {
        (model, mode): by_key[model, mode, recipe]
        for model in models
        for mode in modes
        if (model, mode, recipe) in by_key
    }
    rows: list[View] = [
        {
            "model": model,
            "lanes": [
                {
                    "mode": mode,
                    "mark": modes.index(mode) % 4,
                    "report": here.get((model, mode)),
                    "below": _below_shortcut(here[model, mode]) if (model, mode) in here else [],
                }
                for mode in modes
                if (model, mode) in wanted
            ],
        }
        for model in models
    ]
    missing = [
        f"{model} {mode}"
        for model in models
        for mode in modes
        if (model, mode) in wanted and (model, mode) not in here
    ]
    baselines = _baselines(here.values(), modes)
    lead = [report for (_, mode), report in here.items() if mode == modes[0]]
    classes = list(dict.fromkeys(c for report in here.values() for c in report["classes"]))
    return {
        "name": recipe,
        "description": RECIPES.get(recipe, ""),
        "first": first,
        "rows": rows,
        "missing": missing,
        "evaluated": bool(here),
        "baselines": baselines,
        "strongest": max(baselines, key=lambda b: b["figure"]["value"], default=None),
        "best": max(lead, key=lambda report: report["macro_f1"]["value"], default=None),
        "below": any(lane["below"] for row in rows for lane in row["lanes"]),
        "classes": classes,
        "absent": sorted({c for r in here.values() for c in r["absent_classes"]}),
        "table": [
            {
                "model": model,
                "mode": mode,
                "mark": modes.index(mode) % 4,
                "report": report,
                "differences": [_difference(report, name) for name in SHORTCUTS],
                "f1": {row["class"]: row["f1"] for row in report["per_class"]},
            }
            for (model, mode), report in here.items()
        ],
        "datasets": _datasets(here),
        "warnings": _warnings(here),
    }


def _difference(report: Report, name: str) -> Any:
    return next((b["difference"] for b in report["baselines"] if b["name"] == name), None)


def _baselines(reports: Iterable[Report], modes: list[str]) -> list[View]:
    """Each baseline's figure once; apart by mode where modes differ."""
    found: dict[tuple[str, float, float, float], View] = {}
    for report in reports:
        for baseline in report["baselines"]:
            figure = baseline["macro_f1"]
            key = (baseline["name"], figure["value"], figure["low"], figure["high"])
            entry = found.setdefault(
                key, {"name": baseline["name"], "figure": figure, "modes": set()}
            )
            entry["modes"].add(report["mode"])
    names = list(dict.fromkeys(name for name, *_ in found))
    every = {report_mode for entry in found.values() for report_mode in entry["modes"]}
    result = [
        {
            "name": entry["name"],
            "label": baseline_label(entry["name"]),
            "figure": entry["figure"],
            "modes": ""
            if entry["modes"] == every
            else join_words(mode for mode in modes if mode in entry["modes"]),
        }
        for entry in found.values()
    ]
    rank = {mode: i for i, mode in enumerate(modes)}
    return sorted(
        result,
        key=lambda entry: (names.index(entry["name"]), rank.get(entry["modes"], -1)),
    )


def _datasets(here: Mapping[tuple[str, str], Report]) -> list[View]:
    """The splits of each dataset version among the reports; more than one is worth a warning."""
    versions: dict[str, View] = {}
    for (model, mode), report in here.items():
        entry = versions.setdefault(
            report["dataset_version"],
            {
                "version": report["dataset_version"],
                "splits": _splits(report),
                "gaps": [],
                "who": [],
                "n_windows": report["n_windows"],
                "n_episodes": report["n_episodes"],
                "untested": untested(report),
            },
        )
        entry["gaps"] += [text for text in gaps(report) if text not in entry["gaps"]]
        entry["who"].append(f"{model} {mode}")
    return list(versions.values())


def _splits(report: Report) -> View:
    splits = report["splits"]
    names = _ordered(SPLITS, splits)
    sides = [splits[name] for name in names if name in splits]
    names = [name for name in names if name in splits]
    sources = list(dict.fromkeys(source for side in sides for source in side["coverage"]))
    return {
        "names": names,
        "counts": [
            ("episodes", [side["episodes"] for side in sides]),
            ("of these synthetic", [side["synthetic_episodes"] for side in sides]),
            ("windows", [side["windows"] for side in sides]),
            ("samples", [len(side["samples"]) for side in sides]),
        ],
        "hosts": [side["hosts"] for side in sides],
        "phases": [
            (phase, [side["windows_by_phase"].get(phase, 0) for side in sides])
            for phase in report["classes"]
        ],
        "coverage": [
            (source, [side["coverage"].get(source) for side in sides]) for source in sources
        ],
        "low": LOW_COVERAGE,
    }


def _warnings(here: Mapping[tuple[str, str], Report]) -> list[View]:
    """Warnings with those they concern; ``who`` is empty where they concern all."""
    found: dict[str, list[str]] = {}
    for (model, mode), report in here.items():
        for text in other_warnings(report):
            found.setdefault(text, []).append(f"{model} {mode}")
    return [
        {"text": text, "who": "" if len(who) == len(here) > 1 else join_words(who)}
        for text, who in found.items()
    ]


def _model(
    model: str,
    modes: list[str],
    recipes: list[str],
    wanted: set[tuple[str, str]],
    by_key: Mapping[tuple[str, str, str], Report],
) -> View:
    return {
        "name": model,
        "description": MODELS[model].description if model in MODELS else "",
        "variants": [
            {
                "mode": mode,
                "mark": modes.index(mode) % 4,
                "recipes": [
                    {"name": recipe, "detail": _detail(by_key.get((model, mode, recipe)))}
                    for recipe in recipes
                ],
            }
            for mode in modes
            if (model, mode) in wanted
        ],
    }


def _detail(report: Report | None) -> View | None:
    if report is None:
        return None
    classes, counts = report["confusion"]["classes"], report["confusion"]["counts"]
    by_class = {row["class"]: row for row in report["per_class"]}
    said = [sum(column) for column in zip(*counts, strict=True)]
    return {
        "report": report,
        "classes": classes,
        "confusion": [
            {
                "class": name,
                "cells": [
                    {"n": n, "share": n / sum(row) if sum(row) else 0.0, "predicted": predicted}
                    for n, predicted in zip(row, classes, strict=True)
                ],
                "recall": by_class[name]["recall"] if name in by_class else None,
            }
            for name, row in zip(classes, counts, strict=True)
        ],
        "precision": [counts[i][i] / said[i] if said[i] else None for i in range(len(classes))],
        "per_class": [by_class.get(name, {"class": name}) for name in classes],
        "groups": [
            {
                "title": title,
                "rows": [
                    row | {"name": row[column], "untested": row[column] in unseen}
                    for row in report[key]
                ],
                "never": [name for name in unseen if name not in {r[column] for r in report[key]}],
            }
            for title, key, column, unseen in (
                ("By profile", "per_profile", "profile", report["untested_profiles"]),
                ("By host", "per_host", "host_id", []),
            )
        ],
        "n_roster": len(report["roster"]),
        "below": _below_shortcut(report),
    }
