"""Made-up held-out predictions as ``held_out_predictions`` writes them, and their reports."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import polars as pl
from jsonschema import Draft202012Validator

import evaluation.page
from evaluation.alarm_choice import filtered_alarm_scores, filtered_predictions
from evaluation.comparisons import compare
from evaluation.detection import choose_threshold
from evaluation.documents import (
    DOCUMENTS,
    SCHEMA_FILE,
    BatchDrift,
    Comparisons,
    EvalReport,
    FigureNote,
    document_text,
)
from evaluation.figures import ReportPolicy
from evaluation.likeness import EpisodeLikeness
from evaluation.report import evaluate
from evaluation.scores import SHORTCUTS, baseline_id, split_predictions
from features.registry import LAYOUT, MODES
from models.alarm import AlarmRule

CLASSES = ("clean", "armed", "infected_running", "dormant")
POLICY = ReportPolicy(replicates=100, seed=3)
K = len(CLASSES)
IDENTITY = {
    "recipe": "host", "dataset_version": "d" * 64, "contract_hash": "c" * 64,
    "schema_hash": "s" * 64, "validation_index_digest": "v" * 64, "code_commit": "k" * 40,
    "config": {"n_rounds": 12}, "checkpoint_bytes": 123_456,
}  # fmt: skip
TRAINING = {"history": [[1, 1.5, 1.6, 0.2], [2, 0.5, None, None]], "best_step": 2}
START_NS = 1_700_000_000 * 10**9
BASE = {"start_s": 0.0, "purity": 1.0, "onset_s": None, "job": "", "split": "test"}
_TYPES = {"onset_s": pl.Float64, "start_s": pl.Float64, "purity": pl.Float32}


def windows_of(n_episodes: int = 12, n_windows: int = 10, k: int = K, seed: int = 0) -> list[dict]:
    """The windows of a test set, all in all with every one of ``k`` classes."""
    random = np.random.default_rng(seed)
    return [
        BASE
        | {
            "episode_id": f"E{episode:03}",
            "host_id": f"lab-{'ab'[episode % 2]}",
            "profile": ("io-walk", "cpu-saturate", "fork-churn")[episode % 3],
            "sample_name": f"s.v{episode % 5}",
            "sample_sha256": f"{episode % 5}" * 64,
            "started_at_wall_ns": START_NS + episode * 10**11,
            "ended_at_wall_ns": START_NS + episode * 10**11 + 10**10,
            "session": "2026-11-02",
            "onset_s": 12.0 if episode % 2 else None,
            "window": window,
            "start_s": 5.0 * window,
            "actual": CLASSES[(episode + window) % k if window < 2 else random.integers(k)],
        }
        for episode in range(n_episodes)
        for window in range(n_windows)
    ]


def guess(windows: list[dict], right: float, seed: int) -> list[str]:
    """Predictions that are right with a probability that differs from episode to episode."""
    random = np.random.default_rng(seed)
    share = {w["episode_id"]: min(1.0, right * random.uniform(0.5, 1.5)) for w in windows}
    return [
        w["actual"] if random.random() < share[w["episode_id"]] else CLASSES[random.integers(K)]
        for w in windows
    ]


def predictions(
    windows: list[dict],
    by_model: Mapping[str, Sequence[str]],
    val: Mapping[str, Sequence[str]] | None = None,
) -> pl.DataFrame:
    """The table: what ``by_model`` predicts, and in the oracle mode nonsense.

    Args:
        val: what is predicted on validation, which has the same windows; None: the same.
    """
    rows = [
        window
        | {"model": model, "mode": mode, "split": split}
        | {"checkpoint_id": baseline_id(model) if model in SHORTCUTS else f"{model}-{mode}"}
        | {"episode_id": ("V" if split == "val" else "") + window["episode_id"]}
        | {f"p_{c}": (0.7 if c == predicted else 0.1) for c in CLASSES}
        for split, by in (("test", by_model), ("val", val or by_model))
        for model, predicted_classes in by.items()
        for mode in ("realistic", "oracle")
        for window, predicted in zip(
            windows,
            predicted_classes if mode == "realistic" else ["clean"] * len(windows),
            strict=True,
        )
    ]
    table = pl.DataFrame(rows, schema_overrides=_TYPES, infer_schema_length=None)
    return table.sample(fraction=1.0, shuffle=True, seed=0)


def side(**windows_by_phase: int) -> dict[str, Any]:
    return {
        "windows": sum(windows_by_phase.values()), "episodes": 12, "hosts": ["lab-a"],
        "sessions": ["2026-11-02"],
        "samples": ["io-walk.v0"], "synthetic_episodes": 0, "windows_by_phase": windows_by_phase,
        "coverage": {"guest": 0.9, "netflow": 1.0},
    }  # fmt: skip


def dataset(**changes: Any) -> dict[str, Any]:
    return {
        "recipe": "host",
        "splits": {
            "train": side(clean=60, armed=20, infected_running=15, dormant=5),
            "val": side(clean=5),
            "test": side(clean=9),
        },
        "profiles": ["cpu-saturate", "fork-churn", "io-walk"],
        "tested_profiles": ["cpu-saturate", "fork-churn", "io-walk"],
        "untested_profiles": [],
        "excluded": {"degraded": 2},
        "exclusions": [],
    } | changes


def report_on(
    table: pl.DataFrame,
    policy: ReportPolicy = POLICY,
    recipe: str = "host",
    likeness: EpisodeLikeness | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """The report on gbt_realistic, as JSON has it; its filter changes nothing."""
    return evaluate(
        table, "gbt", "realistic", CLASSES, dataset(**facts), IDENTITY | {"recipe": recipe},
        policy, LAYOUT.window, TRAINING, *plain_rule(table, "gbt", policy), likeness,
    ).model_dump(mode="json")  # fmt: skip


def plain_rule(
    table: pl.DataFrame, model: str, policy: ReportPolicy = POLICY, mode: str = "realistic"
) -> tuple[AlarmRule, FigureNote | None]:
    """A rule whose filter gives each window its own posterior, and the note on its threshold."""
    val = split_predictions(table, model, mode, CLASSES, "val")
    rule = AlarmRule(
        checkpoint_id=val.checkpoint_id, phases=CLASSES, initial=(1 / K,) * K,
        transitions=((1 / K,) * K,) * K, temperature=1.0, threshold=0.5, clear_ratio=1.0,
    )  # fmt: skip
    threshold, note = choose_threshold(
        filtered_alarm_scores(filtered_predictions(val, rule), rule, LAYOUT.window), policy
    )
    return replace(rule, threshold=threshold), note


def report_of(
    windows: list[dict],
    model: Sequence[str],
    position: Sequence[str],
    missingness: Sequence[str],
    policy: ReportPolicy = POLICY,
    **facts: Any,
) -> dict[str, Any]:
    by_model = {"gbt": model, "position_only": position, "missingness_only": missingness}
    return report_on(predictions(windows, by_model), policy, **facts)


def check_schema(document: Mapping[str, Any]) -> None:
    """What is written is what the schema says: nothing missing, nothing more."""
    schema = json.loads(SCHEMA_FILE.read_text())
    (form,) = (
        form for form in DOCUMENTS
        if schema["$defs"][form.__name__]["properties"]["schema"]["const"] == document["schema"]
    )  # fmt: skip
    validator = Draft202012Validator({"$ref": f"#/$defs/{form.__name__}", "$defs": schema["$defs"]})
    Draft202012Validator.check_schema(schema)
    errors = [f"{e.json_path}: {e.message[:200]}" for e in validator.iter_errors(document)]
    assert not errors, errors
    assert json.loads(document_text(form.model_validate(document))) == document


WINDOWS = windows_of()
GOOD, BAD = guess(WINDOWS, 0.8, 1), guess(WINDOWS, 0.1, 2)


# --- reports of them, and their page

FACTS = {
    "store": "a <store>",
    "episodes": 1234,
    "verdicts": {"accepted": 1200, "rejected": 34},
    "code_commit": "c0ffee" * 6,
    "generated_from": ["d1" * 32],
    "left_out": [],
    "behind": {},
    "champion": None,
    "accepted": None,
    "since": None,
    "fault": "",
    "made": "2026-11-25T10:00:00+00:00",
    "tables": ["figures"],
    "history": [],
    "unavailable": {},
    "not_compared": 3,
}
PROMOTED = {"champion": "gbt_realistic", "since": "2026-11-24T02:00:00+00:00"}
VOID = {"meta", "br", "wbr", "col", "link", "img", "input", "hr", "path"}
TOLD = {
    "gbt": guess(WINDOWS, 0.7, 1),
    "cnn": guess(WINDOWS, 0.6, 2),
    "position_only": guess(WINDOWS, 0.2, 3),
    "missingness_only": ["clean"] * len(WINDOWS),
}


@functools.cache
def documents() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Real documents of two models, two modes and two recipes."""
    table, facts = predictions(WINDOWS, TOLD), dataset(untested_profiles=["scan-and-dial"])
    variants = [(model, mode) for model in ("gbt", "cnn") for mode in MODES]
    reports = [
        evaluate(
            *(table, model, mode, CLASSES, facts, IDENTITY | {"recipe": recipe}, POLICY),
            *(LAYOUT.window, TRAINING, *plain_rule(table, model, POLICY, mode)),
        ).model_dump(mode="json")
        for recipe in ("host", "sample")
        for model, mode in variants
    ]
    compared = [
        compare(
            *(table, variants, CLASSES, facts),
            {"recipe": recipe, "dataset_version": IDENTITY["dataset_version"]},
            POLICY,
        ).model_dump(mode="json")
        for recipe in ("host", "sample")
    ]
    return reports, compared


def report(model: str = "gbt", mode: str = "realistic", recipe: str = "host") -> dict[str, Any]:
    """A real report, under any name; yours to change."""
    (found,) = (
        r for r in documents()[0] if (r["model"], r["mode"], r["recipe"]) == ("gbt", mode, "host")
    ) if mode in MODES else (documents()[0][0],)  # fmt: skip
    return copy.deepcopy(found) | {"model": model, "mode": mode, "recipe": recipe}


def render_report(
    reports: Sequence[dict[str, Any]],
    facts: dict[str, Any],
    comparisons: Sequence[dict[str, Any]] = (),
    drift: Sequence[BatchDrift] = (),
) -> str:
    """The page of documents as JSON has them."""
    return evaluation.page.render_report(
        [EvalReport.model_validate(each) for each in reports],
        facts,
        [Comparisons.model_validate(each) for each in comparisons],
        drift,
    )


class Page(HTMLParser):
    """Text and attributes of a page; fails where tags do not nest."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[tuple[str, str | None]] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.ids: list[str | None] = []
        self.words: list[tuple[str, tuple[str | None, ...]]] = []
        self.feed(page)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(words for words, _ in self.words).split())

    def inside(self, name: str) -> str:
        """The text of the element with this id, or labelled by it."""
        words = [words for words, within in self.words if name in within]
        return " ".join(" ".join(words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.add(tag)
        self.attributes += attrs
        self.ids += [named["id"]] if "id" in named else []
        if tag not in VOID:
            self.open.append((tag, named.get("id") or named.get("aria-labelledby")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1][0] != "style":
            self.words.append((data, tuple(name for _, name in self.open)))
