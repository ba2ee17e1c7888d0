"""The report page: one self-contained HTML file from the evaluation documents of all recipes.

Arranges what ``documents.evaluate`` and ``comparisons.compare`` computed; computes no metric.
Layout and styles are in ``templates/``. The same input gives the same bytes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from datasets.splits import RECIPES, SPLITS
from evaluation import wording
from evaluation.drawing import learning_curve, palette, reliability, timeline
from evaluation.drift import FAIL, WARN, watch_section
from evaluation.figures import COMPARISONS_SCHEMA, REPORT_SCHEMA
from evaluation.scores import ABLATED, BASELINES, SHORTCUTS
from evaluation.templating import templates
from evaluation.wording import NOTHING, baseline_label, finite, join_words
from features.registry import LAYOUT, MODES
from models.registry import MODELS, VARIANTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Report = Mapping[str, Any]
    Comparisons = Mapping[str, Any]
    Figure = Mapping[str, Any]
    View = dict[str, Any]
    Key = tuple[str, str, str]  # model, mode, recipe

LEVEL = 0.05  # an adjusted p below it is shown as a difference
MARKS = 4  # shapes that tell modes apart
MAX_BATCHES = 60  # of those that are watched, the newest are on the page


def render_report(
    reports: Sequence[Report],
    facts: Mapping[str, Any],
    comparisons: Sequence[Comparisons] = (),
    watched: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The page, as text.

    Args:
        reports: what ``documents.evaluate`` returned, one a checkpoint and recipe, in any order.
        facts: ``store``, ``episodes``, ``verdicts`` (verdict -> episodes), ``code_commit``,
            ``generated_from`` (data versions) and ``left_out`` (what is not on the page:
            ``recipe``, ``name``, ``why``), ``champion`` (its name, or None) and ``unwatched``
            (batches not compared with its training data).
        comparisons: what ``comparisons.compare`` returned, one a recipe.
        watched: what ``drift.compare_batch`` returned, one a batch, all of one champion.

    Raises:
        ValueError: a document has another schema, or two are of one subject.
    """
    environment = templates(autoescape=True)
    return environment.get_template("report.html.j2").render(
        view(reports, facts, comparisons, watched)
    )


# --- arranging ----------------------------------------------------------------------------------


def view(
    reports: Sequence[Report],
    facts: Mapping[str, Any],
    comparisons: Sequence[Comparisons],
    watched: Sequence[Mapping[str, Any]],
) -> View:
    """Everything the template shows, in the order in which it is shown."""
    by_key = _by_key(reports)
    compared = _by_recipe(comparisons)
    modes = _ordered(MODES, (mode for _, mode, _ in by_key))
    recipes = _ordered(RECIPES, [*(recipe for _, _, recipe in by_key), *compared])
    models = _ranked(_ordered(MODELS, (model for model, _, _ in by_key)), modes, recipes, by_key)
    wanted = {(v.model, v.mode) for v in VARIANTS} | {(m, mode) for m, mode, _ in by_key}
    phases = _ordered(LAYOUT.phases, (c for r in by_key.values() for c in r["classes"]))
    levels = sorted({report["macro_f1"]["level"] for report in by_key.values()})
    shown = [
        _recipe(recipe, models, modes, wanted, by_key, compared.get(recipe)) for recipe in recipes
    ]
    return {
        "modes": [
            {
                "name": mode,
                "mark": i % MARKS,
                "channels": int(LAYOUT.keep_mask(mode, "tensor").sum()) if mode in MODES else None,
            }
            for i, mode in enumerate(modes)
        ],
        "marks": {mode: i % MARKS for i, mode in enumerate(modes)},
        "recipes": shown,
        "compared": _comparisons(shown, modes, models) if compared else None,
        "watch": _watch(watched, facts),
        "models": [
            _model(model, modes, recipes, phases, wanted, by_key, compared) for model in models
        ],
        "phases": phases,
        "palette": palette(phases),
        "n_reports": len(by_key),
        "window_s": LAYOUT.window.length_ms / 1000,
        "level": join_words(f"{100 * level:g} %" for level in levels) or "95 %",
        "bootstraps": sorted(
            {(r["bootstrap"]["replicates"], r["bootstrap"]["seed"]) for r in by_key.values()}
        ),
        "provenance": [
            by_key[model, mode, recipe]
            for recipe in recipes
            for model in models
            for mode in modes
            if (model, mode, recipe) in by_key
        ],
        "shortcuts": [baseline_label(name) for name in SHORTCUTS],
        "baselines": [(baseline_label(name), words) for name, words in wording.BASELINES.items()],
        "facts": {
            **{name: facts[name] for name in ("store", "episodes", "code_commit")},
            "verdicts": sorted(facts["verdicts"].items()),
            "generated_from": list(facts["generated_from"]),
            "left_out": list(facts["left_out"]),
        },
        "nothing": NOTHING,
    }


def _watch(watched: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> View:
    lines = watch_section(watched)
    severities = [line["severity"] for line in lines]
    return {
        "champion": facts["champion"],
        "unwatched": facts["unwatched"],
        "checks": wording.WATCHED,
        "lines": lines[:MAX_BATCHES],
        "older": lines[MAX_BATCHES:],
        "n": {severity: severities.count(severity) for severity in ("fail", "warn", "ok")},
        "limits": (WARN, FAIL),
    }


def _by_key(reports: Sequence[Report]) -> dict[Key, Report]:
    found: dict[Key, Report] = {}
    for report in reports:
        _check_schema(report, REPORT_SCHEMA)
        key = (report["model"], report["mode"], report["recipe"])
        if key in found:
            ids = ", ".join(wording.short(r["checkpoint_id"]) for r in (found[key], report))
            raise ValueError(
                f"report page: two reports of {key[0]}_{key[1]}, recipe {key[2]} (checkpoints "
                f"{ids}); pass one"
            )
        found[key] = report
    return found


def _by_recipe(comparisons: Sequence[Comparisons]) -> dict[str, Comparisons]:
    found: dict[str, Comparisons] = {}
    for document in comparisons:
        _check_schema(document, COMPARISONS_SCHEMA)
        if document["recipe"] in found:
            raise ValueError(
                f"report page: two comparisons of recipe {document['recipe']}; pass one"
            )
        found[document["recipe"]] = document
    return found


def _check_schema(document: Mapping[str, Any], schema: str) -> None:
    if document.get("schema") != schema:
        raise ValueError(
            f"report page: a document has schema {document.get('schema')!r}, where this page "
            f"reads {schema!r}; evaluate the checkpoints again"
        )


def _ordered(known: Iterable[str], found: Iterable[str]) -> list[str]:
    """The registry's order, then what the registry does not know, by name."""
    first = list(known)
    return first + sorted(set(found) - set(first))


def _ranked(
    models: list[str], modes: list[str], recipes: list[str], by_key: Mapping[Key, Report]
) -> list[str]:
    """Models by macro F1 in the first recipe and mode that they were evaluated in."""

    def rank(model: str) -> tuple[float, ...]:
        found = [by_key.get((model, mode, recipe)) for recipe in recipes for mode in modes]
        values = [report["macro_f1"]["value"] if report else None for report in found]
        return tuple(1.0 if value is None else -value for value in values)

    return sorted(models, key=rank)


def _recipe(
    recipe: str,
    models: list[str],
    modes: list[str],
    wanted: set[tuple[str, str]],
    by_key: Mapping[Key, Report],
    compared: Comparisons | None,
) -> View:
    here = {
        (model, mode): by_key[model, mode, recipe]
        for model in models
        for mode in modes
        if (model, mode, recipe) in by_key
    }
    reports = list(here.values())
    picked = {mode: wording.chosen(reports, mode, compared) for mode in modes}
    baselines = _baselines(reports, modes)
    best = picked[modes[0]]
    ranked = wording.by_test(r for r in reports if r["mode"] == modes[0])
    return {
        "name": recipe,
        "description": RECIPES.get(recipe, ""),
        "evaluated": bool(here),
        "rows": [
            (model, [(mode, here.get((model, mode))) for mode in modes if (model, mode) in wanted])
            for model in models
        ],
        "missing": [
            f"{model} {mode}"
            for model in models
            for mode in modes
            if (model, mode) in wanted and (model, mode) not in here
        ],
        "baselines": baselines,
        "strongest": max(
            (b for b in baselines if finite(b["figure"]["value"])),
            key=lambda b: b["figure"]["value"],
            default=None,
        ),
        "best": best,
        "best_alarms": wording.alarms(best["detection"]) if best else [],
        "higher": ranked[0] if best and ranked[0] is not best else None,
        "picked": [wording.who(report) for report in picked.values() if report],
        "below": {wording.who(r): words for r in reports if (words := wording.below_shortcut(r))},
        "classes": list(dict.fromkeys(c for r in reports for c in r["classes"])),
        "profiles": list(
            dict.fromkeys(
                name
                for r in reports
                for name in (*(row["profile"] for row in r["per_profile"]), *r["untested_profiles"])
            )
        ),
        "reports": reports,
        "heat": [
            (
                report,
                {row["class"]: row["f1"] for row in report["per_class"]},
                {row["profile"]: row["macro_f1"] for row in report["per_profile"]},
            )
            for report in reports
        ],
        "datasets": _datasets(reports),
        "warnings": wording.warnings(reports),
        "compared": compared,
    }


def _baselines(reports: Iterable[Report], modes: list[str]) -> list[View]:
    """Each baseline's figure once; apart by mode where modes differ."""
    found: dict[tuple[Any, ...], View] = {}
    for report in reports:
        for baseline in report["baselines"]:
            figure = baseline["macro_f1"]
            key = (baseline["name"], figure["value"], figure["low"], figure["high"])
            entry = found.setdefault(
                key, {"name": baseline["name"], "figure": figure, "modes": set()}
            )
            entry["modes"].add(report["mode"])
    every = {mode for entry in found.values() for mode in entry["modes"]}
    names = _ordered(BASELINES, (entry["name"] for entry in found.values()))
    rank = {mode: i for i, mode in enumerate(modes)}
    return [
        entry
        | {
            "modes": ""
            if entry["modes"] == every
            else join_words(mode for mode in modes if mode in entry["modes"])
        }
        for entry in sorted(
            found.values(),
            key=lambda e: (names.index(e["name"]), min(rank[mode] for mode in e["modes"])),
        )
    ]


def _datasets(reports: Iterable[Report]) -> list[View]:
    """The splits of each dataset version among the reports; more than one is worth a warning."""
    versions: dict[str, View] = {}
    for report in reports:
        entry = versions.setdefault(
            report["dataset_version"],
            {
                "report": report,
                "splits": _splits(report),
                "gaps": [],
                "who": [],
                "untested": wording.untested(report),
            },
        )
        entry["gaps"] += [text for text in wording.gaps(report) if text not in entry["gaps"]]
        entry["who"].append(wording.who(report))
    return list(versions.values())


def _splits(report: Report) -> View:
    names = [name for name in _ordered(SPLITS, report["splits"]) if name in report["splits"]]
    sides = [report["splits"][name] for name in names]
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
        "low": wording.LOW_COVERAGE,
    }


# --- comparisons --------------------------------------------------------------------------------


def _comparisons(recipes: Sequence[View], modes: list[str], models: list[str]) -> View:
    """Each question with the recipes side by side, on one axis for all differences."""
    documents = {r["name"]: r["compared"] for r in recipes if r["compared"]}

    def ask(question: str, recipe: str, mode: str | None) -> View | None:
        for family in documents[recipe]["families"] if recipe in documents else ():
            if family["name"] == question and family["mode"] == mode:
                rows = sorted(
                    family["comparisons"],
                    key=lambda row: models.index(row["model"]) if row["model"] in models else 99,
                )
                return {**family, "comparisons": rows}
        return None

    forests = [
        row
        for document in documents.values()
        for family in document["families"]
        if family["name"] in ("reference", "modes")
        for row in family["comparisons"]
    ]
    reach = [abs(row[end]) for row in forests for end in ("low", "value", "high") if row[end]]
    return {
        "limit": math.ceil(10 * max([*reach, 0.1])) / 10,
        "level": LEVEL,
        "p_value": join_words(sorted({d["p_value"] for d in documents.values()})),
        "recipes": [
            {
                "name": recipe["name"],
                "there": recipe["name"] in documents,
                "reference": [
                    (mode, family)
                    for mode in modes
                    if (family := ask("reference", recipe["name"], mode))
                ],
                "modes": ask("modes", recipe["name"], None),
                "pairs": [
                    (mode, _matrix(family, models))
                    for mode in modes
                    if (family := ask("pairs", recipe["name"], mode))
                ],
                "baselines": _against_baselines(
                    [
                        row
                        for mode in modes
                        if (family := ask("baselines", recipe["name"], mode))
                        for row in family["comparisons"]
                    ]
                ),
            }
            for recipe in recipes
        ],
    }


def _matrix(family: Mapping[str, Any], models: list[str]) -> View:
    """Every pair of a family as a square: the row minus the column."""
    cells: dict[tuple[str, str], View] = {}
    for row in family["comparisons"]:
        one, other, value = row["model"], row["other"]["model"], row["value"]
        for pair, signed in (
            ((one, other), value),
            ((other, one), None if value is None else -value),
        ):
            cells[pair] = {"value": signed, "p": row["p_holm"]}
    found = {name for pair in cells for name in pair}
    names = [name for name in models if name in found] + sorted(found - set(models))
    return {"names": names, "cells": cells}


def _against_baselines(rows: Sequence[Figure]) -> View | None:
    """Who does not beat which baseline, and the narrowest win."""
    if not rows:
        return None
    lost = [row for row in rows if not (row["low"] or 0) > 0]
    won = [row for row in rows if row not in lost]
    return {
        "n": len({(row["model"], row["mode"]) for row in rows}),
        "lost": lost,
        "narrowest": min(won, key=lambda row: row["low"], default=None),
        "names": list(dict.fromkeys(row["other"]["model"] for row in rows)),
        "rows": {(row["model"], row["mode"], row["other"]["model"]): row for row in rows},
        "who": list(dict.fromkeys((row["model"], row["mode"]) for row in rows)),
    }


# --- models -------------------------------------------------------------------------------------


def _model(
    model: str,
    modes: list[str],
    recipes: list[str],
    phases: list[str],
    wanted: set[tuple[str, str]],
    by_key: Mapping[Key, Report],
    compared: Mapping[str, Comparisons],
) -> View:
    configs = [r["config"] for (name, _, _), r in by_key.items() if name == model]
    return {
        "name": model,
        "description": MODELS[model].description if model in MODELS else "",
        "config": configs[0] if configs and all(c == configs[0] for c in configs) else None,
        "configs_differ": any(config != configs[0] for config in configs),
        "variants": [
            {
                "mode": mode,
                "mark": modes.index(mode) % MARKS,
                "recipes": [
                    {"name": recipe, "detail": _detail(by_key.get((model, mode, recipe)), phases)}
                    for recipe in recipes
                ],
                "ablations": [
                    {"recipe": recipe, **ablation}
                    for recipe in recipes
                    if recipe in compared
                    for ablation in _ablations(compared[recipe], model, mode)
                ],
            }
            for mode in modes
            if (model, mode) in wanted
        ],
    }


def _ablations(document: Comparisons, model: str, mode: str) -> list[View]:
    """What was taken away from a model, what is left, and the difference where it was compared."""
    found = []
    for entry in document["predictors"]:
        name, _, without = entry["model"].partition(ABLATED)
        if entry["kind"] == "ablation" and (name, entry["mode"]) == (model, mode):
            pairs = [
                row
                for family in document["families"]
                for row in family["comparisons"]
                if row["mode"] == row["other"]["mode"] == mode
                and {row["model"], row["other"]["model"]} == {model, entry["model"]}
            ]
            found.append(
                {
                    "name": without or entry["model"],
                    "macro_f1": entry["macro_f1"],
                    "difference": pairs[0] if pairs else None,
                }
            )
    return found


def _detail(report: Report | None, phases: list[str]) -> View | None:
    if report is None:
        return None
    classes, counts = report["confusion"]["classes"], report["confusion"]["counts"]
    by_class = {row["class"]: row for row in report["per_class"]}
    calibration = report["calibration"]
    unseen = report["untested_profiles"]
    return {
        "report": report,
        "classes": classes,
        "confusion": [
            (name, row, [n / sum(row) if sum(row) else 0.0 for n in row])
            for name, row in zip(classes, counts, strict=True)
        ],
        "by_class": by_class,
        "groups": [
            {
                "title": title,
                "rows": [row | {"name": row[column]} for row in report[key]],
                "unseen": unseen if key == "per_profile" else [],
                "never": [n for n in unseen if n not in {r[column] for r in report[key]}]
                if key == "per_profile"
                else [],
            }
            for title, key, column in (
                ("profile", "per_profile", "profile"),
                ("host", "per_host", "host_id"),
            )
        ],
        "n_roster": len(report["roster"]),
        "below": wording.below_shortcut(report),
        "curve": learning_curve(report["learning_curve"]),
        "reliability": [
            reliability(calibration[name]["bins"]) for name in ("as_trained", "scaled")
        ],
        "timeline": timeline(
            report["timeline"],
            phases,
            report["detection"]["alarm_phases"],
            report["window"]["stride_s"],
        ),
    }
