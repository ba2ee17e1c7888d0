"""A public anchor: how a split that leaks flatters a model, on data that others have measured.

    python -m benchmarks.leak seglearn-1.2.5-py3-none-any.whl [MODEL ...]

seglearn's bundled watch data: people with a watch do seven exercises, six channels at 50 Hz. Burns
et al., "Shoulder physiotherapy exercise recognition: machine learning the inertial signals from a
smartwatch", Physiological Measurement 39, 2018, report for their best model an accuracy of 99.4%
when every recording is split by time, and 88.9% on people who were not trained on. The bundled
file has half of the 20 people.

``time`` trains on the beginning of every recording and tests on its end. ``host`` holds out every
person once, two at a time, as if a person were a machine. Validation is from the people trained on,
as in phasewatch's recipes. Then the reports on the first model are asked what they say.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from sklearn.ensemble import RandomForestClassifier

from datasets.splits import SplitPolicy, describe
from evaluation import wording
from evaluation.alarm_choice import choose_rule
from evaluation.baselines import shortcut_predictions
from evaluation.documents import EvalReport
from evaluation.figures import ReportPolicy
from evaluation.report import evaluate
from evaluation.scores import prediction_rows, split_predictions
from features.registry import LAYOUT, WindowSpec
from features.summary import summarise
from features.windows import window_starts, window_views
from models.base import Examples
from models.metrics import macro_f1
from models.registry import MODELS, Variant
from stages.alarm_rules import training_phases
from stages.workspace import Workspace, workspace_from_environment

MEMBER = "seglearn/data/watch_dataset.npy"
SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
SPEC = WindowSpec(bin_ms=20, length_ms=4_000, stride_ms=2_000)
TOGETHER = 2  # people held out at a time
PIECES = {"a": (0.0, 0.6), "b": (0.6, 0.75), "c": (0.75, 1.0)}
"""What a recording is cut into; no window spans two."""
FOREST = "forest"
POLICY = ReportPolicy(replicates=2_000)
SAY_IT = ("validation_above_test", "not_better_than_baseline")
"""Warnings that these data can give; the others are about phases and alarms."""


@dataclass(frozen=True)
class Watch:
    """The windows of all pieces, and both kinds of inputs."""

    exercises: tuple[str, ...]
    table: pl.DataFrame  # one row per window, with the columns of a dataset and ``piece``
    summary: np.ndarray  # (n_windows, n_features)
    tensor: np.ndarray  # (n_windows, n_timepoints, n_channels)

    def examples(self, rows: np.ndarray, kind: str) -> Examples:
        X = self.summary if kind == "summary" else self.tensor
        code = {name: i for i, name in enumerate(self.exercises)}
        y = np.array([code[label] for label in self.table["label"]])
        return Examples(X[rows], y[rows], episode=self.table["episode_id"].to_numpy()[rows])


def read_watch(wheel: str) -> Watch:
    """The bundled recordings, cut into windows."""
    content = zipfile.ZipFile(wheel).read(MEMBER)
    if (found := hashlib.sha256(content).hexdigest()) != SHA256:
        raise SystemExit(f"{wheel}: {MEMBER} must have sha256 {SHA256}, got {found}")
    # the file is a pickle; its bytes are the ones that were looked at
    data = np.load(io.BytesIO(content), allow_pickle=True).item()  # noqa: TID251
    layout = replace(LAYOUT, window=SPEC)
    rows: list[dict] = []
    summary, tensor = [], []
    for recording, (series, y, person, side) in enumerate(
        zip(data["X"], data["y"], data["subject"], data["side"], strict=True)
    ):
        exercise = data["y_labels"][y]
        for number, (piece, (begin, end)) in enumerate(PIECES.items()):
            part = series[int(begin * len(series)) : int(end * len(series))].astype(np.float32)
            starts = window_starts(len(part), SPEC)
            summary.append(summarise(part, starts, layout))
            tensor.append(window_views(part, SPEC))
            began = 10**9 * (number * 10**6 + recording * 10**3)
            episode = {
                "episode_id": f"{number * 1000 + recording:026d}",
                "host_id": f"person-{person:02d}",
                "profile": exercise,
                "sample_name": f"{exercise}.{'right' if side else 'left'}",
                "sample_sha256": f"{exercise}{side:g}",
                "started_at_wall_ns": began,
                "ended_at_wall_ns": began + int(len(part) / 50 * 10**9),
                "session": "bundled",
                "label": exercise,
                "piece": piece,
            }
            rows += [episode | {"window": i, "start_s": s / 50} for i, s in enumerate(starts)]
    constant = {"purity": 1.0, "job": "", "synthetic": False, "coverage_guest": 1.0} | {
        "coverage_netflow": 1.0
    }
    table = pl.DataFrame(rows).with_columns(
        pl.lit(None, pl.Float64).alias("onset_s"),
        *(pl.lit(value).alias(name) for name, value in constant.items()),
    )
    return Watch(tuple(data["y_labels"]), table, np.concatenate(summary), np.concatenate(tensor))


def turns(watch: Watch) -> Iterator[tuple[str, str, pl.DataFrame]]:
    """``(recipe, what is tested, table with split)``."""
    piece = pl.col("piece")

    def sides(test: pl.Expr) -> pl.DataFrame:
        side = pl.when(test).then(pl.lit("test")).when(piece == "b").then(pl.lit("val"))
        return watch.table.with_columns(split=side.otherwise(pl.lit("train")))

    yield "time", "end of each recording", sides(piece == "c")
    people = watch.table["host_id"].unique().sort().to_list()
    for first in range(0, len(people), TOGETHER):
        held_out = people[first : first + TOGETHER]
        yield "host", ", ".join(held_out), sides(pl.col("host_id").is_in(held_out))


def probabilities(
    watch: Watch, table: pl.DataFrame, model: str, workspace: Workspace
) -> tuple[np.ndarray, dict]:
    """Of every window by a model trained on ``train``, and its learning curve."""
    kind = "summary" if model == FOREST else MODELS[model].input_kind
    side = {s: np.flatnonzero(table["split"].to_numpy() == s) for s in ("train", "val")}
    train, val = (watch.examples(side[s], kind) for s in ("train", "val"))
    X = watch.summary if kind == "summary" else watch.tensor
    if model == FOREST:
        trees = RandomForestClassifier(300, class_weight="balanced", n_jobs=2, random_state=0)
        return trees.fit(train.X, train.y).predict_proba(X), {}
    variant = Variant(model, "realistic")
    fitted = variant.spec.build(
        workspace.model_config_of(variant),
        len(watch.exercises),
        seed=workspace.seed,
        device="cpu",
    ).fit(train, val)
    history = [[e.step, e.train_loss, e.val_loss, e.val_macro_f1] for e in fitted.history_.epochs]
    return fitted.predict_proba(X), {"history": history, "best_step": fitted.history_.best_step}


def report_on(
    watch: Watch, table: pl.DataFrame, recipe: str, model: str, proba: np.ndarray, training: dict
) -> EvalReport:
    """The report that phasewatch writes of any checkpoint."""
    who, classes = (model, "realistic"), watch.exercises
    held_out = (table["split"] != "train").to_numpy()
    predictions = pl.concat(
        [
            prediction_rows(table.filter(held_out), *who, "-", proba[held_out], classes),
            shortcut_predictions(table, classes, ["realistic"], POLICY.seed),
        ],
        how="vertical_relaxed",
    )
    val = split_predictions(predictions, *who, classes, "val")
    rule, note = choose_rule(val, training_phases(table, classes), classes, POLICY, SPEC)
    assigned = table.with_columns(excluded=pl.lit(None, pl.String))
    facts = describe(table, assigned, recipe, SplitPolicy()) | {"exclusions": []}
    names = ("dataset_version", "contract_hash", "schema_hash", "validation_index_digest")
    identity = dict.fromkeys((*names, "code_commit"), "-") | {
        "recipe": recipe, "config": {}, "checkpoint_bytes": 0,
    }  # fmt: skip
    return evaluate(predictions, *who, classes, facts, identity, POLICY, SPEC, training, rule, note)


def main() -> None:
    parser = argparse.ArgumentParser(description="A leak, and what the reports say of it.")
    parser.add_argument("wheel", help="seglearn's, which has the data")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: gbt cnn")
    asked = parser.parse_args()
    models = asked.models or ["gbt", "cnn"]
    workspace, watch = workspace_from_environment(), read_watch(asked.wheel)
    truth = watch.table["label"].to_numpy()
    code = {name: i for i, name in enumerate(watch.exercises)}
    right: dict[tuple[str, str], list[np.ndarray]] = {}
    scores: dict[tuple[str, str], list[float]] = {}
    reports: list[tuple[str, EvalReport]] = []
    for recipe, tested, table in turns(watch):
        test = (table["split"] == "test").to_numpy()
        for model in (*models, FOREST):
            proba, training = probabilities(watch, table, model, workspace)
            predicted = proba[test].argmax(axis=1)
            actual = np.array([code[label] for label in truth[test]])
            right.setdefault((recipe, model), []).append(predicted == actual)
            score = macro_f1(actual, predicted, len(code))
            scores.setdefault((recipe, model), []).append(score)
            if model == models[0]:
                reports.append((tested, report_on(watch, table, recipe, model, proba, training)))
        print(f"{recipe}: {tested}", flush=True)

    print(f"\n{'':8}{'model':14}{'accuracy':>10}{'least':>8}{'macro F1':>10}")
    for (recipe, model), found in right.items():
        each = [turn.mean() for turn in found]
        print(
            f"{recipe:8}{model:14}{np.concatenate(found).mean():10.1%}{min(each):8.1%}"
            f"{np.mean(scores[recipe, model]):10.3f}"
        )
    hosts = [report for _, report in reports if report.recipe == "host"]
    above = [r for r in hosts if any(w.code == "validation_above_test" for w in r.warnings)]
    print(
        f"\n{len(above)} of {len(hosts)} reports on held-out people warn that validation lies above"
    )
    print("the test interval.")
    worst = min(hosts, key=lambda r: r.macro_f1.value or 0)
    for report in (reports[0][1], worst):
        print(f"\nThe report on {wording.variant_label(report)}, recipe {report.recipe}:")
        print(
            f"- macro F1 {wording.number(report.macro_f1.value)} ({wording.span(report.macro_f1)})"
        )
        said = [
            wording.conditional_on(report.bootstrap.conditional_on),
            *wording.shared(report),
            *(wording.sentence(w) for w in report.warnings if w.code in SAY_IT),
        ]
        print("\n".join(f"- {text}" for text in said))


if __name__ == "__main__":
    main()
