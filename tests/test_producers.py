"""Producers: what they publish is what the artifacts and the store say, and nothing else."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
from builders import PROFILES
from lab import RECIPE, Lab, failure, put_in_use
from typer.testing import CliRunner

from datasets.windows import read_dataset
from episodes.validation import ValidatedEpisode
from evaluation.latency import processor
from features.loaders import read_windows
from hub import producers
from hub.client import Publisher, PublishError
from hub.curves import AXIS, RESOURCES, attack_shape, attack_spans, quartiles, resampled
from hub.events import CURVE_POINTS
from hub.server import Hub, build_server
from models.checkpoint import CheckpointError, checkpoint_path
from models.registry import VARIANTS, find_variant
from models.scaling import fit_scaling, scale
from pipelines.cli.app import FAILED, OK, REJECTED, USAGE, app
from stages.datasets import open_windows
from stages.evaluation import read_report
from stages.held_out_predictions import read_predictions
from stages.project import Project
from stages.report_page import comparable_documents
from stages.scoring import champion_scorer, scorer_of
from stages.status import StageError

ROOT = Path(__file__).parent.parent
TOKEN = "correct-horse-battery"
CHANNELS = set(RESOURCES.values())


class Served:
    """A hub on a port, in a thread."""

    def __init__(self, folder: Path, port: int = 0, **options: Any):
        self.hub = Hub(folder)
        self.listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = build_server(self.hub, **options)
        self.thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True
        )
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)

    @property
    def kept(self) -> list[dict[str, Any]]:
        """The latest event of every subject."""
        frames = list(self.hub.state._by_number.values())
        return [json.loads(frame.text.partition(b"data: ")[2]) for frame in frames]

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    running: list[Served] = []

    def begin(**options: Any) -> Served:
        running.append(Served(tmp_path / "decisions", **options))
        return running[-1]

    yield begin
    for each in running:
        each.stop()


@pytest.fixture
def crowned(retrained: Lab) -> Lab:
    """A lab whose champion, trained on recipe ``sample``, is served as of recipe ``time``."""
    only = [dg.AssetKey("datasets")]
    made = retrained.execute("retrain", "time", only=only)
    assert made.success, failure(made)
    put_in_use(retrained, "gbt")
    return retrained


def checkpoint(lab: Lab, model: str) -> Path:
    folder = lab.workspace.checkpoint_folder(RECIPE)
    return checkpoint_path(folder, find_variant(model, "realistic"))


def command(lab: Lab, *words: str) -> tuple[int, dict[str, Any]]:
    paths = ["--store", str(lab.store.root), "--artifacts", str(lab.artifacts)]
    result = CliRunner().invoke(app, ["produce", *words, *paths, "--json"])
    return result.exit_code, json.loads(result.stdout)


# --- metrics, phases


def test_metrics_are_those_of_the_reports(trained: Lab) -> None:
    found = {(e.model, e.mode): e for e in producers.metrics(trained.project)}
    project = trained.project
    for variant in VARIANTS:
        report = read_report(project.existing(f"eval_reports/{variant.name}", RECIPE))
        event = found.pop((variant.model, variant.mode))
        figure = report.macro_f1
        assert (event.value, event.low, event.high) == (figure.value, figure.low, figure.high)
        assert (event.recipe, event.level, event.baseline) == (RECIPE, 0.95, False)
    assert {model for model, _ in found} == {b.name for b in report.baselines}
    assert [mode for model, mode in found if model == "prior"] == [None]
    for (model, mode), event in found.items():
        assert event.baseline
        alike = {
            baseline.macro_f1.value
            for each in comparable_documents(project, [RECIPE]).reports
            for baseline in each.baselines
            if baseline.name == model and mode in (None, each.mode)
        }
        assert alike == {event.value}


def test_what_is_not_current_is_no_metric(retrained: Lab) -> None:
    checkpoint(retrained, "gbt").unlink()
    models = [(e.model, e.mode) for e in producers.metrics(retrained.project)]
    assert ("gbt", "realistic") not in models
    assert ("gbt", "oracle") in models
    shutil.rmtree(retrained.artifacts / "datasets")
    with pytest.raises(StageError, match=r"no report is current: \d+ [^\n]*phasewatch run$"):
        list(producers.metrics(retrained.project))


def test_the_mix_counts_every_window_of_every_usable_recording(trained: Lab) -> None:
    trained_on = pl.concat(
        pl.DataFrame(
            read_windows(
                trained.project.artifacts("ingest", batch)["tensor_shards"].paths("windows")
            )
        )
        for batch in trained.project.listing.batches
    )
    found = {event.scope: event.mix for event in producers.phases(trained.project)}
    expected = {"corpus": Counter(trained_on["label"])}
    for (host,), windows in trained_on.group_by("host_id"):
        expected[host] = Counter(windows["label"])
    phases = trained.workspace.layout.phases
    assert found == {
        scope: {phase: mix[phase] for phase in phases} for scope, mix in expected.items()
    }


@pytest.mark.parametrize("publish", [producers.phases, producers.profiles])
def test_a_store_may_have_a_long_path(trained: Lab, tmp_path: Path, publish: Any) -> None:
    link = tmp_path / ("s" * 200)
    link.symlink_to(trained.store.root)
    project = Project(trained.workspace.model_copy(update={"store": str(link)}))
    assert next(publish(project)).origin.endswith("s" * 100)


# --- replay


@pytest.mark.parametrize("model", ["gbt", "cnn"])
def test_a_replay_says_what_the_held_out_predictions_say(trained: Lab, model: str) -> None:
    project = trained.project
    scorer = scorer_of(project, checkpoint(trained, model))
    events = list(producers.replay(scorer))
    phases = trained.workspace.layout.phases
    table = read_predictions(project.existing("held_out_predictions", RECIPE)).filter(
        pl.col("model") == model, pl.col("mode") == "realistic", pl.col("split") == "test"
    )
    proba = table.select(f"p_{phase}" for phase in phases).to_numpy()
    expected = {
        (episode, window): (phases[p.argmax()], actual)
        for episode, window, actual, p in zip(
            table["episode_id"], table["window"], table["actual"], proba, strict=True
        )
    }
    assert {(e.episode_id, e.window): (e.predicted, e.actual) for e in events} == expected
    assert {(e.recipe, e.model) for e in events} == {(RECIPE, f"{model}_realistic")}
    assert all(e.filtered is not None and e.alarm is not None for e in events)
    assert all(e.origin.startswith("replay, ") for e in events)


def test_a_champion_replays_what_it_never_learned(crowned: Lab) -> None:
    project = crowned.project
    scorer = champion_scorer(project)
    assert scorer.training is not None
    learned = set(scorer.training["episode_id"])
    test = read_dataset(project.existing("datasets", "time")).filter(pl.col("split") == "test")
    assert learned & set(test["episode_id"])
    shown = {e.episode_id for e in producers.replay(scorer)}
    assert shown == set(test["episode_id"]) - learned

    chosen = [project.listing.find(sorted(learned)[0]), project.listing.find(sorted(shown)[0])]
    recipes = {e.episode_id: e.recipe for e in producers.replay(scorer, chosen)}
    assert recipes == {chosen[0].episode_id: None, chosen[1].episode_id: "time"}


def test_what_was_excluded_is_not_replayed(crowned: Lab) -> None:
    scorer = champion_scorer(crowned.project)
    episode = next(iter(producers.replay(scorer))).episode_id
    crowned.workspace.exclusions_file.write_text(
        json.dumps([{"episode": episode, "from_s": 0, "to_s": 12, "reason": "-", "who": "-"}])
    )
    made = crowned.execute("retrain", "time", only=[dg.AssetKey("datasets")])
    assert made.success, failure(made)
    scorer = champion_scorer(crowned.project)
    shown = [e for e in producers.replay(scorer) if e.episode_id == episode]
    assert [e.window for e in shown] == [3, 4, 5, 6]  # windows of 10 s, 5 s apart


def test_another_dataset_than_it_was_trained_on_holds_out_nothing_known(retrained: Lab) -> None:
    path = checkpoint(retrained, "gbt")
    retrained.store.add("lab-a", profile="io-walk", duration_s=40)
    retrained.ingest()
    made = retrained.execute("retrain", RECIPE, only=[dg.AssetKey("datasets")])
    assert made.success, failure(made)
    project = retrained.project
    scorer = scorer_of(project, path)
    with pytest.raises(StageError, match="has changed since"):
        list(producers.replay(scorer))
    (chosen, *_) = project.listing.episodes
    assert {e.recipe for e in producers.replay(scorer, [chosen])} == {None}


def test_one_recording_at_a_time_is_in_memory(trained: Lab) -> None:
    project = trained.project
    scorer = scorer_of(project, checkpoint(trained, "gbt"))
    for events in (producers.replay(scorer), producers.embedding(scorer)):
        alive = set()
        for event in events:
            if getattr(event, "window", 0) == 0:
                alive.add(sum(type(each) is ValidatedEpisode for each in gc.get_objects()))
        assert alive == {1}


def test_a_paced_replay_takes_its_time(trained: Lab) -> None:
    project = trained.project
    scorer = scorer_of(project, checkpoint(trained, "gbt"))
    began = time.monotonic()
    chosen = project.listing.episodes[:1]
    (*_, last) = producers.replay(scorer, chosen, speed=100)
    assert time.monotonic() - began >= (last.start_s + 10) / 100


# --- embedding


@pytest.mark.parametrize("model", ["gbt", "cnn"])
def test_an_embedding_lies_along_the_axes_of_training(trained: Lab, model: str) -> None:
    project, variant = trained.project, find_variant(model, "realistic")
    scorer = scorer_of(project, checkpoint(trained, model))
    events = list(producers.embedding(scorer))
    training, test = (open_windows(project, RECIPE, variant, split) for split in ("train", "test"))
    rows = scale(np.asarray(test.X[:]), fit_scaling(training.X)).astype(float)
    rows = rows.mean(axis=1) if rows.ndim == 3 else rows
    expected = rows @ np.array(scorer.checkpoint.header["pca_proj"])
    table = read_dataset(project.existing("datasets", RECIPE)).filter(pl.col("split") == "test")
    windows = table.select("episode_id", "window").iter_rows()
    places = dict(zip(windows, expected, strict=True))
    assert {(e.episode_id, e.window) for e in events} == set(places)
    for event in events:
        place = places[event.episode_id, event.window]
        assert (event.x, event.y) == pytest.approx(tuple(place), abs=2e-3)
        assert event.z is None
    assert {e.cluster for e in events} == set(table["profile"])


def test_of_many_windows_the_same_few_are_drawn(trained: Lab) -> None:
    project = trained.project
    scorer = scorer_of(project, checkpoint(trained, "gbt"))
    first, again = (
        [(e.episode_id, e.window, e.x, e.y) for e in producers.embedding(scorer, 9)]
        for _ in range(2)
    )
    assert len(set(first)) == 9
    assert first == again


# --- perf


def test_every_realistic_checkpoint_is_measured_or_said_not_to_be(retrained: Lab) -> None:
    broken = checkpoint(retrained, "mlp")
    broken.write_bytes(broken.read_bytes()[:-200])
    events = {e.model: e for e in producers.perf(retrained.project, RECIPE)}
    assert set(events) == {v.model for v in VARIANTS if v.mode == "realistic"}
    unmeasured = events.pop("mlp")
    assert (unmeasured.device, unmeasured.latency_ms) == ("not measured", None)
    for event in events.values():
        report = read_report(
            retrained.project.existing(f"eval_reports/{event.model}_realistic", RECIPE)
        )
        assert (event.device, event.macro_f1) == (processor(), report.macro_f1.value)
        assert event.latency_ms is not None
        assert event.latency_p99_ms is not None
        assert 0 < event.latency_ms <= event.latency_p99_ms
        files = checkpoint(retrained, event.model).parent.glob(f"{event.model}_realistic.*")
        assert event.size_bytes == sum(path.stat().st_size for path in files)


def test_without_a_checkpoint_there_is_nothing_to_measure(ingested: Lab) -> None:
    with pytest.raises(StageError, match="no realistic checkpoint"):
        list(producers.perf(ingested.project))


# --- attack profiles


@pytest.mark.parametrize(
    ("bins", "spans"),
    [
        ("ccc", None),
        ("ccaaiirrr", [(0, 2), (2, 4), (4, 6), (6, 9), None]),
        ("ccaaiirrcc", [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]),
        ("iirr", [None, None, (0, 2), (2, 4), None]),
        ("carr", [(0, 1), (1, 2), None, (2, 4), None]),
        # a first try to arm comes to nothing, dormancy ends no attack, a second is not shown
        ("cacaairdrdccairrc", [(2, 3), (3, 5), (5, 6), (6, 7), (10, 12)]),
        ("ciraair", [(0, 1), None, (1, 2), (2, 3), None]),
    ],
)
def test_the_spans_of_a_first_attack(bins: str, spans: Any) -> None:
    names = {"c": "clean", "a": "armed", "i": "infecting", "r": "infected_running", "d": "dormant"}
    assert attack_spans([names[each] for each in bins]) == spans


def test_a_span_becomes_its_number_of_points() -> None:
    nan = np.nan
    values = np.array([[0.0, nan], [2.0, nan], [4.0, 1.0], [6.0, nan]])
    np.testing.assert_array_equal(resampled(values, 2), [[1.0, nan], [5.0, 1.0]])
    np.testing.assert_array_equal(resampled(values[:2], 4)[:, 0], [0.0, 0.0, 2.0, 2.0])
    np.testing.assert_allclose(resampled(values, 3)[:, 0], [1.0, 3.0, 5.0])  # parts overlap
    assert sum(points for _, points in AXIS) == CURVE_POINTS


def test_what_an_episode_lacks_is_not_averaged_in() -> None:
    nan = np.nan
    curves = np.array([[1.0, nan, nan], [2.0, 4.0, nan], [3.0, 8.0, nan]])
    assert quartiles(curves) == ([1.5, 5.0, None], [2.0, 6.0, None], [2.5, 7.0, None])


@pytest.mark.parametrize(
    ("growth", "expected"),
    [
        ([2.0, 0.1, 0.0, 0.0, 0.3], "cpu"),
        ([0.1, 2.3, 0.0, 0.0, 3.0], "connections"),
        ([0.9, 0.9, 1.0, 0.0, 0.4], "mixed"),
        ([0.1, -2.0, 0.0, 0.2, 0.1], "quiet"),
        ([np.nan, 1.0, np.nan, 0.2, 0.1], "network"),
        ([np.nan] * 5, "quiet"),
    ],
)
def test_the_shape_is_the_resource_that_stands_out(growth: list[float], expected: str) -> None:
    assert attack_shape(np.array([growth, growth])) == expected


def test_profiles_of_a_store(lab: Lab) -> None:
    clean = lab.store.add("lab-a", profile="io-walk", duration_s=40, phases=[("clean", 0.0)])
    without = lab.store.add("lab-a", profile="io-walk", duration_s=40, without=("guest",))
    expected = {"bulk-upload": "network", "cpu-saturate": "cpu", "fork-churn": "processes"}
    assert set(PROFILES[:3]) == set(expected)
    events = list(producers.profiles(lab.project))
    assert {e.channel for e in events} == CHANNELS
    assert {e.name: e.shape for e in events} == expected  # io-walk: no channel has a value
    assert {e.n_episodes for e in events} == {9}
    for event in events:  # armed, infecting, running and the clean time before: but no clean tail
        assert [value is None for value in event.curve] == [False] * 65 + [True] * 15
        for low, middle, high in zip(event.p25, event.curve, event.p75, strict=True):
            if low is not None and middle is not None and high is not None:
                assert low <= middle <= high
    few = [e for e in producers.profiles(lab.project, 4) if e.name == "bulk-upload"]
    assert {e.n_episodes for e in few} == {4}
    assert clean.episode_id != without.episode_id


# --- to the hub


def test_all_that_is_produced_reaches_the_hub(crowned: Lab, serve: Callable[..., Served]) -> None:
    hub = serve(token=TOKEN)
    token = crowned.artifacts / "token"
    token.write_text(TOKEN + "\n")
    published = 0
    words = ["--to", hub.url, "--token-file", str(token), "--once"]
    for producer in ("replay", "metrics", "perf", "profiles", "embedding", "phases"):
        recipe = ["--recipe", RECIPE] if producer == "perf" else []
        code, document = command(crowned, producer, *recipe, *words)
        assert (code, document.get("error"), document.get("producer")) == (OK, None, producer)
        published += document["events"]
    assert {event["type"] for event in hub.kept} == {
        "prediction", "model_metric", "model_perf", "attack_profile", "embedding", "phase",
    }  # fmt: skip
    assert hub.hub.state.newest == len(hub.kept) == published
    assert all(event["origin"] and event["data_at"] for event in hub.kept)

    code, document = command(crowned, "all", "--recipe", RECIPE, *words)
    assert (code, document.get("error"), document.get("events")) == (OK, None, published)

    code, document = command(crowned, "phases", "--to", hub.url)
    assert (code, "401" in document["error"]) == (FAILED, True)


def test_how_many_events_there_were_is_told_meanwhile(
    trained: Lab, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr("pipelines.cli.produce.EVERY_S", 0.0)
    caplog.set_level(logging.INFO, "phasewatch")
    code, document = command(trained, "metrics", "--to", serve().url)
    counts = [r.args[1] for r in caplog.records if getattr(r, "progress", False)]
    assert (code, counts) == (OK, [f"{n:,}" for n in range(1, document["events"] + 1)])


@pytest.mark.parametrize("options", [{"token": "t" * 16}, {"read_only": True}])
def test_a_hub_that_takes_nothing_is_noticed_before_the_work(
    serve: Callable[..., Served], options: dict[str, Any]
) -> None:
    hub = serve(**options)
    for token in (None, "wrong-horse-battery"):
        with pytest.raises(PublishError) as refused:
            Publisher(hub.url, token).check()
        assert ("--token-file" in str(refused.value)) == ("token" in options)
    hub.stop()
    Publisher(serve().url).check()
    assert hub.kept == []


def test_a_batch_is_refused_as_a_whole(trained: Lab, serve: Callable[..., Served]) -> None:
    hub = serve()
    events = list(producers.phases(trained.project))
    wrong = events[0].model_copy(update={"scope": ""})  # a copy is not validated
    with pytest.raises(PublishError, match=r"scope.*\(422\)"):
        Publisher(hub.url).publish([*events, wrong])
    assert hub.kept == []
    assert Publisher(hub.url).publish(events, 1) == len(events) == len(hub.kept)


def test_what_was_made_before_a_producer_fails_is_sent(
    trained: Lab, serve: Callable[..., Served]
) -> None:
    made = list(producers.phases(trained.project))

    def failing() -> Iterator[Any]:
        yield from made
        raise StageError("no more")

    hub = serve()
    with pytest.raises(StageError, match="no more"):
        Publisher(hub.url).publish(failing())
    assert len(hub.kept) == len(made) > 0


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["phases", "--to", "127.0.0.1:1"], USAGE, "--to must be"),
        (["phases", "--to", "http://127.0.0.1:99999"], USAGE, "--to must be"),
        (["phases", "--to", "http://127.0.0.1:1"], FAILED, "phasewatch hub"),
        (["replay", "--to", "http://127.0.0.1:1"], FAILED, "no hub answers there"),
        (["phases", "--once", "--every", "5"], USAGE, "exclude each other"),
        (["perf", "--recipe", "moon"], USAGE, "got 'moon'"),
        (["replay"], FAILED, "phasewatch promote"),
        (["embedding"], FAILED, "phasewatch promote"),
        (["replay", "01ARZ3NDEKTSV4RRFFQ69G5FAV"], USAGE, "no episode"),
        (["replay", "--checkpoint", "nowhere.ckpt.json"], USAGE, "no such file"),
    ],
)
def test_what_cannot_be_is_said(
    trained: Lab, serve: Callable[..., Served], words: list[str], code: int, part: str
) -> None:
    if "--to" not in words:
        words = [*words, "--to", serve().url]
    found, document = command(trained, *words)
    assert (found, part in document["error"]) == (code, True), document


def test_an_unusable_episode_is_not_replayed(retrained: Lab, serve: Callable[..., Served]) -> None:
    short = retrained.store.add("lab-a", profile="io-walk", duration_s=5)
    path = str(checkpoint(retrained, "gbt"))
    words = ("replay", short.episode_id, "--checkpoint", path, "--to", serve().url)
    code, document = command(retrained, *words)
    assert (code, short.episode_id in document["error"]) == (REJECTED, True)
    assert "\n" not in document["error"]


def test_damaged_artifacts_are_named(retrained: Lab) -> None:
    path, project = checkpoint(retrained, "gbt"), retrained.project
    scorer = scorer_of(project, path)
    (windows,) = retrained.artifacts.glob(f"datasets/{RECIPE}/windows.*.parquet")
    content = windows.read_bytes()
    windows.write_bytes(content[:-9] + b"different")
    with pytest.raises(StageError, match=f"{windows.name} was changed.*phasewatch run"):
        list(producers.replay(scorer))
    windows.write_bytes(content)
    sidecar = path.parent / scorer.checkpoint.header["sidecar"]
    sidecar.write_bytes(sidecar.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=sidecar.name):
        scorer_of(retrained.project, path)


def test_again_and_again_whatever_becomes_of_the_hub(
    trained: Lab, serve: Callable[..., Served]
) -> None:
    first = serve()
    words = ["produce", "phases", "--every", "1", "--to", first.url]
    paths = ["--store", str(trained.store.root), "--artifacts", str(trained.artifacts)]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli.app", *words, *paths],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    with closing(process.stderr):
        try:
            wait_for(lambda: len(first.kept) == 4)
            first.stop()
            assert any("no hub answers there" in line for line in process.stderr)  # after progress
            second = serve(port=first.port)
            wait_for(lambda: len(second.kept) == 4)
        finally:
            process.terminate()
            process.wait(60)


def wait_for(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 180
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)
