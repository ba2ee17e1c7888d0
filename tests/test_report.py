"""The report page says what the reports say, whatever their names, and keeps to itself."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from evaluation.charts import confusion_png
from evaluation.datasets import RECIPES
from evaluation.figures import REPORT_SCHEMA
from evaluation.report import number, render_report
from features.registry import MODES
from models.registry import MODELS, VARIANTS

FACTS = {
    "store": "a <store>",
    "episodes": 1234,
    "verdicts": {"accepted": 1200, "rejected": 34},
    "code_commit": "c0ffee" * 6,
    "generated_from": ["d1" * 32],
}
VOID = {"meta", "br", "wbr", "col", "link", "img", "input", "hr"}
CLASSES = ["calm", "busy_bee", "gone"]


def figure(value: float, half: float = 0.05, metric: str = "macro_f1") -> dict[str, Any]:
    return {
        "metric": metric, "value": value, "low": value - half, "high": value + half,
        "left_out": 0, "level": 0.95,
    }  # fmt: skip


def side(episodes: int, phases: dict[str, int]) -> dict[str, Any]:
    return {
        "windows": sum(phases.values()), "episodes": episodes, "hosts": ["h1"],
        "samples": ["s1", "s2"], "synthetic_episodes": 0, "windows_by_phase": phases,
        "coverage": {"guest": 0.95, "netflow": 0.9},
    }  # fmt: skip


def report(
    model: str = "gbt", mode: str = "realistic", recipe: str = "host", value: float = 0.8
) -> dict[str, Any]:
    """The part of a report that the page shows; the class ``gone`` is absent from test."""
    return {
        "schema": REPORT_SCHEMA, "model": model, "mode": mode, "split": "test",
        "checkpoint_id": f"{model}.{mode}.{recipe}", "recipe": recipe,
        "dataset_version": f"{recipe:0<64}", "contract_hash": "a" * 64, "schema_hash": "b" * 64,
        "validation_index_digest": "c" * 64, "code_commit": "d" * 40, "val_macro_f1": figure(0.9),
        "classes": CLASSES, "roster": CLASSES[:2], "absent_classes": ["gone"],
        "tested_profiles": ["p1", "p2", "p3", "p4", "p5"],
        "untested_profiles": ["scan-and-dial"],
        "n_windows": 30, "n_episodes": 3,
        "splits": {
            "train": side(9, {"calm": 60, "busy_bee": 30, "gone": 5}),
            "val": side(2, {"calm": 20, "busy_bee": 10}),
            "test": side(3, {"calm": 20, "busy_bee": 10}),
        },
        "excluded_episodes": {"degraded, on the test side": 2},
        "bootstrap": {
            "unit": "episode", "replicates": 500, "seed": 0, "replicates_lacking_a_class": 0,
        },
        "macro_f1": figure(value),
        "per_class": [
            {"class": "calm", "support": 20, "precision": figure(0.9), "recall": figure(0.85),
             "f1": figure(0.87, metric="f1")},
            {"class": "busy_bee", "support": 10, "precision": figure(0.5) | {"value": None},
             "recall": figure(0.7), "f1": figure(0.73, metric="f1")},
        ],
        "per_profile": [
            {"profile": "p1", "windows": 30, "episodes": 3, "classes": 2, "macro_f1": figure(value)}
        ],
        "per_host": [
            {"host_id": "h1", "windows": 30, "episodes": 3, "classes": 2, "macro_f1": figure(value)}
        ],
        "confusion": {"classes": CLASSES, "counts": [[17, 3, 0], [3, 7, 0], [0, 0, 0]]},
        "baselines": [
            {"name": "position_only", "macro_f1": figure(0.4), "difference": figure(value - 0.4)},
            {"name": "missingness_only", "macro_f1": figure(0.3),
             "difference": figure(value - 0.3)},
            {"name": "prior", "macro_f1": figure(0.2), "difference": figure(value - 0.2)},
            {"name": "uniform", "macro_f1": figure(0.15), "difference": figure(value - 0.15)},
        ],
        "warnings": [
            "Profile scan-and-dial was never tested: no figure speaks of it.",
            "Phase gone is absent from the test set: never tested.",
        ],
    }  # fmt: skip


def full() -> list[dict[str, Any]]:
    return [
        report(v.model, v.mode, recipe, 0.5 + 0.01 * i)
        for i, (v, recipe) in enumerate((v, recipe) for v in VARIANTS for recipe in RECIPES)
    ]


class Page(HTMLParser):
    """Text and attributes of a page; fails where tags do not nest."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.ids: list[str | None] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def test_every_model_mode_and_recipe_is_there() -> None:
    html = render_report(full(), FACTS)
    page = Page(html)
    for v in VARIANTS:
        for recipe in RECIPES:
            assert f"{v.model} {v.mode}, recipe {recipe}" in page.text
    assert "not evaluated" not in page.text
    assert "position-only" in page.text
    assert "1\u202f234 episodes" in html


def test_every_figure_says_where_it_comes_from() -> None:
    one = report()
    titles = [value for name, value in Page(render_report([one], FACTS)).attributes
              if name == "title"]  # fmt: skip
    for key in ("checkpoint_id", "dataset_version", "contract_hash", "schema_hash", "code_commit"):
        assert one[key] in titles


def test_comparisons_are_taken() -> None:
    assert render_report([report()], FACTS, [{}]) == render_report([report()], FACTS)


def test_what_is_missing_is_said() -> None:
    text = Page(render_report([report("gbt", "realistic", "host")], FACTS)).text
    for recipe in list(RECIPES)[1:]:
        assert f"recipe {recipe}: not evaluated" in text
    for v in VARIANTS:
        if (v.model, v.mode) != ("gbt", "realistic"):
            assert re.search(rf"Not evaluated: [^.]*{v.model} {v.mode}", text)


def test_no_report_at_all_is_a_page_too() -> None:
    text = Page(render_report([], FACTS)).text
    assert all(f"recipe {recipe}: not evaluated" in text for recipe in RECIPES)


def test_untested_profiles_and_absent_phases_are_said_once_in_words() -> None:
    text = Page(render_report([report()], FACTS)).text
    assert "5 of 6 profiles tested; scan-and-dial was never tested." in text
    assert "Phase gone is absent from the test set" in text
    assert "no figure speaks of it" not in text  # the report's own wording of the same


def test_synthetic_episodes_and_coverage_are_said() -> None:
    one = report()
    one["splits"]["train"]["synthetic_episodes"] = 4
    one["splits"]["test"]["coverage"]["guest"] = 0.1
    text = Page(render_report([one], FACTS)).text
    assert "Synthetic episodes are part of this dataset: 4 of 9 in train." in text
    assert "guest covers 0.950 of training and 0.100 of test" in text


def test_a_model_that_beats_no_shortcut_is_marked() -> None:
    one = report()
    one["baselines"][0]["difference"] = figure(0.01)
    one["warnings"].append("Not better than position-only beyond chance.")
    text = Page(render_report([one, report(mode="oracle")], FACTS)).text
    assert "gbt realistic: Not better than position-only beyond chance." in text
    assert "* not better than" in text


def test_two_dataset_versions_of_a_recipe_are_called_incomparable() -> None:
    other = report(mode="oracle") | {"dataset_version": "other"}
    assert "not comparable" in Page(render_report([report(), other], FACTS)).text
    assert "not comparable" not in Page(render_report([report()], FACTS)).text


def test_models_modes_recipes_and_phases_unknown_to_the_registries_appear() -> None:
    text = Page(render_report([report("novel", "wired", "moon")], FACTS)).text
    assert "novel wired, recipe moon" in text
    assert all(name in text for name in (*MODELS, *MODES, "busy_bee"))


def test_hostile_names_are_escaped() -> None:
    evil = "<script>alert(1)</script>\"'&{{ 7*7 }}"
    one = report(evil, evil, evil)
    one["classes"] = one["confusion"]["classes"] = [evil, *CLASSES[1:]]
    one["roster"][0] = one["per_class"][0]["class"] = evil
    one["untested_profiles"] = one["warnings"] = [evil]
    one["per_host"][0]["host_id"] = one["per_profile"][0]["profile"] = evil
    one["checkpoint_id"] = one["dataset_version"] = evil
    one["splits"]["test"]["hosts"] = [evil]
    one["splits"]["test"]["coverage"] = {evil: 0.1}
    one["excluded_episodes"] = {evil: 1}
    facts = FACTS | {"store": evil, "code_commit": evil, "generated_from": [evil]}
    page = Page(render_report([one], facts | {"verdicts": {evil: 1}}))
    assert "script" not in page.tags
    assert evil in page.text
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_the_page_is_self_contained() -> None:
    text = render_report(full(), FACTS)
    page = Page(text)
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    linked = [value for name, value in page.attributes if name in ("href", "src", "xlink:href")]
    assert {str(value)[1:] for value in linked} <= set(map(str, page.ids))
    assert len(page.ids) == len(set(page.ids))


def test_values_that_are_no_number_are_dashes() -> None:
    one = report()
    one["val_macro_f1"]["value"] = None
    one["per_class"][0]["f1"] |= {"low": float("nan"), "high": float("inf")}
    one["per_profile"][0]["macro_f1"]["value"] = float("nan")
    one["splits"]["val"]["coverage"]["guest"] = float("nan")
    text = render_report([one], FACTS)
    assert not re.search(r"\b(nan|NaN|inf|None|null|Undefined)\b", Page(text).text)
    assert not re.search(r"[\"':](nan|inf|None)", text)


def test_equal_reports_in_any_order_give_equal_bytes() -> None:
    reports = full()
    before = copy.deepcopy(reports)
    assert render_report(reports, FACTS) == render_report(reports[::-1], FACTS)
    assert reports == before


def test_reports_that_cannot_be_shown_are_refused() -> None:
    with pytest.raises(ValueError, match="schema 'other/1'"):
        render_report([report() | {"schema": "other/1"}], FACTS)
    with pytest.raises(ValueError, match="two reports of gbt_realistic, recipe host"):
        render_report([report(), report()], FACTS)


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [
        (0.12345, False, "0.123"),
        (-0.0001, True, "+0.000"),
        (-0.5, True, "−0.500"),
        (1, False, "1.000"),
        (None, False, "–"),
        (float("nan"), False, "–"),
    ],
)
def test_number(value: float | None, sign: bool, text: str) -> None:
    assert number(value, sign=sign) == text


def test_confusion_png_is_a_small_deterministic_picture() -> None:
    confusion = report()["confusion"]
    picture = confusion_png(confusion, "gbt $realistic_x$ <b>")
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert 300 <= int.from_bytes(picture[16:20], "big") <= 500
    assert len(picture) < 50_000
    assert picture == confusion_png(confusion, "gbt $realistic_x$ <b>")
