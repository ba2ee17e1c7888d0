"""The page: one self-contained HTML file from the evaluation documents of all recipes.

Arranges what ``report``, ``comparisons`` and ``drift`` computed; computes no metric. Layout and
styles are in ``templates/``. The same input gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets.splits import RECIPES, SPLITS
from evaluation import ranking, wording
from evaluation.documents import BatchDrift, Comparison, Comparisons, EvalReport, Family, Importance
from evaluation.drawing import learning_curve, operating, palette, reliability, sparks, timeline
from evaluation.drift import CHECKS, FAIL, WARN, drift_figures
from evaluation.scores import ABLATION_SEPARATOR, SHORTCUTS
from evaluation.templating import templates
from evaluation.wording import baseline_label, join_words
from features.registry import LAYOUT, MODES
from models.registry import MODELS, VARIANTS

View = dict[str, Any]
Key = tuple[str, str, str]  # model, mode, recipe

SIGNIFICANT_BELOW = 0.05  # of adjusted p values
MARKS = 4  # shapes that tell modes apart
BARS = 5  # channels of a phase that are on the page
MAX_BATCHES = 60  # the newest are on the page


def render_report(
    reports: Sequence[EvalReport],
    facts: Mapping[str, Any],
    comparisons: Sequence[Comparisons] = (),
    drift: Sequence[BatchDrift] = (),
) -> str:
    """The page, as text.

    Args:
        reports: one per checkpoint and recipe, in any order.
        facts: ``store``, ``episodes``, ``verdicts`` (verdict -> episodes), ``code_commit``,
            ``generated_from`` (data versions), ``left_out`` (what is not on the page: ``recipe``,
            ``name``, ``why``), ``behind`` (recipe -> which batches its dataset lacks),
            ``unavailable`` (recipe -> why the store cannot give it),
            ``champion`` (its name, or None), ``since`` (when it was promoted), ``fault`` (why the
            champion cannot be read, or empty), ``made`` (when the page was made), ``tables`` (file
            names of CSV), ``history`` (rows of earlier checkpoints: ``made, recipe, model, mode,
            checkpoint_id, macro_f1``), ``accepted`` (alarms over the budget with which it was
            promoted: ``why``, ``by``, ``since`` and ``grounds``; or None), ``not_compared`` (how
            many batches were not compared with its training data), and maybe ``rotation`` (the
            ``HostRotation``) and ``alarms`` (the ``Tally`` of the log of decisions).
        comparisons: one per recipe.
        drift: one per batch, all against one champion.

    Raises:
        ValueError: two documents have the same subject.
    """
    environment = templates(autoescape=True)
    return environment.get_template("page.html.j2").render(view(reports, facts, comparisons, drift))


# --- arranging ----------------------------------------------------------------------------------


# Long, because it puts one document together, field by field.
def view(
    reports: Sequence[EvalReport],
    facts: Mapping[str, Any],
    comparisons: Sequence[Comparisons],
    drift: Sequence[BatchDrift],
) -> View:
    """Everything the template shows, in the order in which it is shown."""
    by_key = {(report.model, report.mode, report.recipe): report for report in reports}
    if len(by_key) < len(reports):
        raise ValueError("page: two reports have the same model, mode and recipe; pass one")
    compared = {document.recipe: document for document in comparisons}
    if len(compared) < len(comparisons):
        raise ValueError("page: two comparisons have the same recipe; pass one")
    modes = _ordered(MODES, (mode for _, mode, _ in by_key))
    recipes = _ordered(RECIPES, [*(recipe for _, _, recipe in by_key), *compared])
    models = _ranked(_ordered(MODELS, (model for model, _, _ in by_key)), modes, recipes, by_key)
    wanted = {(v.model, v.mode) for v in VARIANTS} | {(m, mode) for m, mode, _ in by_key}
    phases = _ordered(LAYOUT.phases, (c for r in by_key.values() for c in r.classes))
    levels = sorted({report.macro_f1.level for report in by_key.values()})
    shown = [
        _recipe(recipe, models, modes, wanted, by_key, compared.get(recipe))
        | {"absent": facts["unavailable"].get(recipe, "not evaluated")}
        for recipe in recipes
    ]
    had = [recipe for recipe in recipes if recipe not in facts["unavailable"]]
    return {
        "modes": [
            {
                "name": mode,
                "mark": i % MARKS,
                "channels": int(LAYOUT.channels_of(mode).sum()) if mode in MODES else None,
            }
            for i, mode in enumerate(modes)
        ],
        "marks": {mode: i % MARKS for i, mode in enumerate(modes)},
        "recipes": shown,
        "expectation": wording.expectation(
            {
                what: recipe["best"]
                for what, name in (("day", "session"), ("machine", "host"))
                for recipe in shown
                if recipe["name"] == name and recipe["best"]
            }
        ),
        "compared": _comparisons([r for r in shown if r["name"] in had], modes, models)
        if compared
        else None,
        "latency": _latency(models, modes, had, by_key),
        "accepted": facts["accepted"],
        "rotation": facts.get("rotation"),
        "alarms": facts.get("alarms"),
        "champion": facts["champion"],
        "drift": _drift(drift, facts),
        "models": [_model(model, modes, had, phases, wanted, by_key, compared) for model in models],
        "phases": phases,
        "palette": palette(phases),
        "n_reports": len(by_key),
        "window_s": LAYOUT.window.length_ms / 1000,
        "level": join_words(f"{100 * level:g}%" for level in levels) or "95%",
        "bootstraps": sorted({(r.bootstrap.replicates, r.bootstrap.seed) for r in by_key.values()}),
        "provenance": [
            by_key[model, mode, recipe]
            for recipe in recipes
            for model in models
            for mode in modes
            if (model, mode, recipe) in by_key
        ],
        "shortcuts": [baseline_label(name) for name in SHORTCUTS],
        "baselines": [
            (baseline_label(name), words) for name, words in wording.BASELINE_MEANS.items()
        ],
        "facts": {
            **{
                name: facts[name]
                for name in (
                    *("store", "episodes", "code_commit"),
                    *("champion", "since", "fault", "made", "tables", "history"),
                )
            },
            "verdicts": sorted(facts["verdicts"].items()),
            "generated_from": list(facts["generated_from"]),
            "left_out": list(facts["left_out"]),
            "behind": dict(facts["behind"]),
        },
        "nothing": wording.NOTHING,
    }


def _latency(
    models: list[str], modes: list[str], recipes: list[str], by_key: Mapping[Key, EvalReport]
) -> View | None:
    """Each variant's latency and size by recipe, and on what it was measured."""
    measured = {key: report for key, report in by_key.items() if report.latency}
    if not measured:
        return None
    return {
        "recipes": recipes,
        "windows": max(r.latency.windows for r in measured.values() if r.latency),
        "processors": sorted({r.latency.processor for r in measured.values() if r.latency}),
        "rows": [
            (model, mode, [measured.get((model, mode, recipe)) for recipe in recipes])
            for model in models
            for mode in modes
            if any((model, mode, recipe) in measured for recipe in recipes)
        ],
    }


def _drift(documents: Sequence[BatchDrift], facts: Mapping[str, Any]) -> View:
    lines = drift_lines(documents)
    severities = [line["severity"] for line in lines]
    return {
        "champion": facts["champion"],
        "not_compared": facts["not_compared"],
        "columns": [wording.DRIFT_COLUMNS[name] for name in CHECKS],
        "lines": lines[:MAX_BATCHES],
        "older": lines[MAX_BATCHES:],
        "n": {severity: severities.count(severity) for severity in ("fail", "warn", "ok")},
        "limits": (WARN, FAIL),
    }


def drift_lines(documents: Iterable[BatchDrift]) -> list[View]:
    """One line per batch, newest day first, with the most telling number of each check."""
    lines: list[View] = []
    for document in documents:
        flat = drift_figures(document)
        covered = [value for name, value in flat.items() if name.startswith("coverage_")]
        telling: dict[str, tuple[float | None, float | None]] = {
            "coverage": (min(covered, default=None), None),
            "channels": _deciding(document),
            "missing": (flat.get("missing_share"), None),
            **{
                check.name: (check.value, check.chance)
                for check in document.checks
                if check.name in ("verdicts", "class_mix")
            },
        }
        lines.append(
            {
                "batch": document.batch,
                "host": document.host,
                "severity": document.severity,
                "episodes": document.episodes,
                "windows": document.windows,
                "findings": [text for check in document.checks for text in wording.findings(check)],
                "notes": [wording.sentence(note) for note in document.notes],
                "checks": [
                    {
                        "name": check.name,
                        "severity": check.severity,
                        "value": value,
                        "chance": chance,
                    }
                    for check in document.checks
                    for value, chance in [telling[check.name]]
                ],
            }
        )
    lines.sort(key=lambda line: line["host"])
    return sorted(lines, key=lambda line: line["batch"].rpartition(".")[2], reverse=True)


def _deciding(document: BatchDrift) -> tuple[float | None, float | None]:
    """PSI of the channel that says most, and what resampled training episodes give by chance."""
    rows = [
        row for check in document.checks if check.name == "channels" for row in check.rows
        if row.value is not None
    ]  # fmt: skip
    rank = ("ok", "warn", "fail")
    row = max(rows, key=lambda row: (rank.index(row.severity or "ok"), row.value), default=None)
    return (row.value, row.chance) if row else (None, None)


def _ordered(known: Iterable[str], present: Iterable[str]) -> list[str]:
    """The registry's order, then what the registry does not know, by name."""
    first = list(known)
    return first + sorted(set(present) - set(first))


def _ranked(
    models: list[str], modes: list[str], recipes: list[str], by_key: Mapping[Key, EvalReport]
) -> list[str]:
    """Models by macro F1 in the first recipe and mode that they were evaluated in."""

    def rank(model: str) -> tuple[float, ...]:
        reports = [by_key.get((model, mode, recipe)) for recipe in recipes for mode in modes]
        values = [report.macro_f1.value if report else None for report in reports]
        return tuple(1.0 if value is None else -value for value in values)

    return sorted(models, key=rank)


# Long, because it puts one document together, field by field.
def _recipe(
    recipe: str,
    models: list[str],
    modes: list[str],
    wanted: set[tuple[str, str]],
    by_key: Mapping[Key, EvalReport],
    compared: Comparisons | None,
) -> View:
    evaluated = {
        (model, mode): by_key[model, mode, recipe]
        for model in models
        for mode in modes
        if (model, mode, recipe) in by_key
    }
    reports = list(evaluated.values())
    picked = {mode: ranking.best_on_validation(reports, mode, compared) for mode in modes}
    baselines = _baselines(reports, modes)
    best = picked[modes[0]]
    ranked = ranking.ranked_by_test(r for r in reports if r.mode == modes[0])
    return {
        "name": recipe,
        "description": RECIPES.get(recipe, ""),
        "evaluated": bool(evaluated),
        "rows": [
            (
                model,
                [(mode, evaluated.get((model, mode))) for mode in modes if (model, mode) in wanted],
            )
            for model in models
        ],
        "missing": [
            f"{model} {mode}"
            for model in models
            for mode in modes
            if (model, mode) in wanted and (model, mode) not in evaluated
        ],
        "baselines": baselines,
        "strongest": next((b for b in baselines if b["figure"].value is not None), None),
        "best": best,
        "best_alarms": wording.alarms(best.detection)
        + wording.by_job(best.detection)[:2]
        + wording.unlike(best.unlike)
        if best
        else [],
        "higher": ranked[0] if best and ranked[0] is not best else None,
        "picked": [wording.variant_label(report) for report in picked.values() if report],
        "below": [wording.variant_label(r) for r in reports if ranking.below_shortcut(r)],
        "classes": list(dict.fromkeys(c for r in reports for c in r.classes)),
        "profiles": list(
            dict.fromkeys(
                name
                for r in reports
                for name in (*(row.name for row in r.per_profile), *r.untested_profiles)
            )
        ),
        "reports": reports,
        "heat": [
            (
                report,
                {row.name: row.f1 for row in report.per_class},
                {row.name: row.macro_f1 for row in report.per_profile},
            )
            for report in reports
        ],
        "datasets": _datasets(reports),
        "warnings": wording.warnings(reports),
        "compared": compared,
    }


def _baselines(reports: Iterable[EvalReport], modes: list[str]) -> list[View]:
    """Each baseline's figure once, or once per mode if modes differ."""
    rows = ranking.baseline_rows(reports)
    every = {mode for _, _, present in rows for mode in present}
    return [
        {
            "name": name,
            "figure": figure,
            "modes": "" if set(present) == every else join_words(sorted(present, key=modes.index)),
        }
        for name, figure, present in rows
    ]


def _datasets(reports: Iterable[EvalReport]) -> list[View]:
    """The splits of each dataset version among the reports; more than one needs a warning."""
    versions: dict[str, View] = {}
    for report in reports:
        entry = versions.setdefault(
            report.dataset_version,
            {
                "report": report,
                "splits": _splits(report),
                "gaps": [],
                "variants": [],
                "untested": wording.untested(report),
            },
        )
        entry["gaps"] += [text for text in wording.gaps(report) if text not in entry["gaps"]]
        entry["variants"].append(wording.variant_label(report))
    return list(versions.values())


def _splits(report: EvalReport) -> View:
    names = [name for name in _ordered(SPLITS, report.splits) if name in report.splits]
    sides = [report.splits[name] for name in names]
    sources = list(dict.fromkeys(source for side in sides for source in side.coverage))
    return {
        "names": names,
        "counts": [
            ("episodes", [side.episodes for side in sides]),
            ("of these synthetic", [side.synthetic_episodes for side in sides]),
            ("windows", [side.windows for side in sides]),
            ("samples", [len(side.samples) for side in sides]),
        ],
        "names_of": [
            ("hosts", [side.hosts for side in sides]),
            ("sessions", [side.sessions for side in sides]),
        ],
        "phases": [
            (phase, [side.windows_by_phase.get(phase, 0) for side in sides])
            for phase in report.classes
        ],
        "coverage": [(source, [side.coverage.get(source) for side in sides]) for source in sources],
        "low": wording.LOW_COVERAGE,
    }


# --- comparisons --------------------------------------------------------------------------------


def _comparisons(recipes: Sequence[View], modes: list[str], models: list[str]) -> View:
    """Each question with the recipes side by side, on one axis."""
    families = {
        (recipe["name"], family.name, family.mode): family
        for recipe in recipes
        if recipe["compared"]
        for family in recipe["compared"].families
    }

    def ask(question: str, recipe: str, mode: str | None) -> View | None:
        family = families.get((recipe, question, mode))
        return family and {
            "reference": family.reference,
            "comparisons": sorted(
                family.comparisons,
                key=lambda row: models.index(row.model) if row.model in models else len(models),
            ),
        }

    def limit(question: str) -> float:
        """Where the axis of a question ends."""
        reach = (
            abs(end)
            for family in families.values()
            if family.name == question
            for row in family.comparisons
            for end in (row.low, row.value, row.high)
            if end is not None
        )
        return math.ceil(10 * max([*reach, 0.1])) / 10

    return {
        "limits": {question: limit(question) for question in ("reference", "modes")},
        "level": SIGNIFICANT_BELOW,
        "p_value": wording.P_VALUE,
        "recipes": [
            {
                "name": recipe,
                "reference": [
                    (mode, answers) for mode in modes if (answers := ask("reference", recipe, mode))
                ],
                "modes": ask("modes", recipe, None),
                "pairs": [
                    (mode, _matrix(families[recipe, "pairs", mode], models))
                    for mode in modes
                    if (recipe, "pairs", mode) in families
                ],
                "baselines": _against_baselines(
                    [
                        row
                        for mode in modes
                        if (answers := ask("baselines", recipe, mode))
                        for row in answers["comparisons"]
                    ]
                ),
            }
            for recipe in (recipe["name"] for recipe in recipes)
        ],
    }


def _matrix(family: Family, models: list[str]) -> View:
    """Every pair of a family as a square: the row minus the column."""
    cells: dict[tuple[str, str], View] = {}
    for row in family.comparisons:
        one, other, value = row.model, row.other.model, row.value
        cells[one, other] = {"value": value, "p": row.p_holm}
        cells[other, one] = {"value": None if value is None else -value, "p": row.p_holm}
    present = {name for pair in cells for name in pair}
    names = [name for name in models if name in present] + sorted(present - set(models))
    return {"names": names, "cells": cells}


def _against_baselines(rows: Sequence[Comparison]) -> View | None:
    """Models that do not beat a baseline significantly, and the smallest significant lead."""
    if not rows:
        return None
    won = [row for row in rows if (row.low or 0) > 0]
    return {
        "n": len({(row.model, row.mode) for row in rows}),
        "lost": [row for row in rows if not (row.low or 0) > 0],
        "smallest": min(won, key=lambda row: row.low or 0, default=None),
        "names": list(dict.fromkeys(row.other.model for row in rows)),
        "rows": {(row.model, row.mode, row.other.model): row for row in rows},
        "variants": list(dict.fromkeys((row.model, row.mode) for row in rows)),
    }


# --- models -------------------------------------------------------------------------------------


def _model(
    model: str,
    modes: list[str],
    recipes: list[str],
    phases: list[str],
    wanted: set[tuple[str, str]],
    by_key: Mapping[Key, EvalReport],
    compared: Mapping[str, Comparisons],
) -> View:
    configs = [r.config for (name, _, _), r in by_key.items() if name == model]
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
    """Each part left out of a model, the macro F1 without it, and the difference."""
    ablations = []
    for entry in document.predictors:
        name, _, without = entry.model.partition(ABLATION_SEPARATOR)
        if entry.kind == "ablation" and (name, entry.mode) == (model, mode):
            pairs = [
                row
                for family in document.families
                for row in family.comparisons
                if row.mode == row.other.mode == mode
                and {row.model, row.other.model} == {model, entry.model}
            ]
            ablations.append(
                {
                    "name": without or entry.model,
                    "macro_f1": entry.macro_f1,
                    "difference": pairs[0] if pairs else None,
                }
            )
    return ablations


def _detail(report: EvalReport | None, phases: list[str]) -> View | None:
    if report is None:
        return None
    confusion, calibration = report.confusion, report.calibration
    unseen = report.untested_profiles
    tested = {row.name for row in report.per_profile}
    return {
        "report": report,
        "classes": confusion.classes,
        "confusion": [
            (name, row, [n / sum(row) if sum(row) else 0.0 for n in row])
            for name, row in zip(confusion.classes, confusion.counts, strict=True)
        ],
        "by_class": {row.name: row for row in report.per_class},
        "groups": [
            ("profile", report.per_profile, unseen, [n for n in unseen if n not in tested]),
            ("host", report.per_host, [], []),
        ],
        "below": [baseline_label(name) for name in ranking.below_shortcut(report)],
        "curve": learning_curve(report.learning_curve),
        "reliability": [
            reliability(side.bins) for side in (calibration.as_trained, calibration.scaled)
        ],
        "operating": operating(report.detection),
        "within_budget": [
            wording.within_budget(points, report.detection)
            for points in (
                report.detection.operating_curve.points,
                report.detection.operating_curve.random,
            )
        ],
        "importance": _importance(report.importance),
        "errors": [
            (error, sparks(error, report.window.length_s), wording.exclude_command(error, report))
            for error in report.errors
        ],
        "timeline": timeline(
            report.timeline,
            phases,
            report.detection.alarm_phases,
            report.window.stride_s,
            report.detection.clear_below,
        ),
    }


def _importance(found: Importance | None) -> View | None:
    """Of each phase the channels that weigh most, as shares of the phase's largest."""
    if found is None:
        return None
    return {
        "method": wording.METHOD[found.method],
        "windows": found.windows,
        "phases": [
            (
                phase,
                [
                    (name, value, value / (max(phase.values) or 1.0))
                    for value, name in sorted(
                        zip(phase.values, found.channels, strict=True),
                        key=lambda pair: (-pair[0], pair[1]),
                    )[:BARS]
                ],
            )
            for phase in found.phases
        ],
    }
