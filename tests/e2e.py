"""End to end, through a real ``phasewatch ui``: click, growth, night, backfill, drift, headless.

    make e2e

Needs a few minutes and a loopback port. The parts that click need Playwright (the extra ``e2e``)
and a Chromium; without them the same is asked of the server, and it is said. Not collected by
pytest: nothing here is fast. Screenshots go to ``artifacts/e2e``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from builders import PROFILES, StoreBuilder

ROOT = Path(__file__).resolve().parent.parent
SHOTS = Path(os.environ.get("PHASEWATCH_ARTIFACTS") or ROOT / "artifacts") / "e2e"
ROOMS = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
CONFIG = """
resources:
  workspace:
    config:
      device: cpu
      splits: {test_share: 0.34, val_share: 0.34}
      report: {replicates: 200}
      models:
"""
MODELS = {
    "gbt": "{n_rounds: 12, max_depth: 3, early_stopping_rounds: 5, n_threads: 1}",
    "cnn": "{width: 8, depth: 1, epochs: 2, n_threads: 1}",
}
_LOCATION = "phasewatch"
INGEST = ["validation_index", "tensor_shards", "feature_shards", "drift"]
SCORE = {"ops": {"predictions": {"config": {"model": "gbt", "recipe": "host"}}}}
DRIFT = "guest.net_rx_bytes: unit was B/s, is now kB/s"


class Lab:
    """A copied tree with its store, its artifacts and its Dagster, in one folder."""

    def __init__(self, folder: Path, models: tuple[str, ...] = tuple(MODELS)) -> None:
        self.tree = folder / "tree"
        self.artifacts = folder / "artifacts"
        for name in ROOMS:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, self.tree / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", self.tree)
        self._keep(models)
        self.config = folder / "config.yaml"
        self.config.write_text(CONFIG + "".join(f"        {m}: {MODELS[m]}\n" for m in models))
        self.store = StoreBuilder(folder / "store")
        self.store.populate(profiles=PROFILES[:3], variants=3, duration_s=40)
        self.env = os.environ | {
            "DAGSTER_HOME": str(folder / "home"),
            "PHASEWATCH_STORE": str(self.store.root),
            "PHASEWATCH_ARTIFACTS": str(self.artifacts),
            "PHASEWATCH_CONFIG": str(self.config),
            "PHASEWATCH_NIGHT": "* * * * *",
            "PYTHONPATH": str(self.tree),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def _keep(self, models: tuple[str, ...]) -> None:
        """Few are enough for what is asked here (two: a kind of input each), and end sooner."""
        path = self.tree / "models" / "registry.py"
        before, variants, after = path.read_text().partition("\n\nVARIANTS = ")
        assert variants
        few = f"\n\nMODELS = {{name: MODELS[name] for name in {models}}}"
        path.write_text(before + few + variants + after)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of this environment, run to its end in the copied tree."""
        return subprocess.run(
            [str(Path(sys.executable).with_name(words[0])), *words[1:]],
            cwd=self.tree,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def drift(self) -> None:
        """Change the unit of a channel in the copied registry."""
        path = self.tree / "features" / "registry.py"
        text = path.read_text()
        at = text.index('"net_rx_bytes": ')
        path.write_text(text[:at] + text[at:].replace('"B/s"', '"kB/s"', 1))


class Server:
    """A running ``phasewatch ui``: the guarded web server, the daemon and the code server."""

    def __init__(self, lab: Lab) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.log = lab.artifacts.parent / "ui.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [Path(sys.executable).with_name("phasewatch"), "ui", "--port", self.url[17:]],
                cwd=lab.tree,
                env=lab.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End the server and every process under it: they outlive a signal to their parent."""
        family = [self.process.pid]
        for pid in family:
            family += _children(pid)
        self.process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """The data of a GraphQL answer."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(
            f"{self.url}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            document = json.load(answer)
        if document.get("errors"):
            raise RuntimeError(document["errors"][0]["message"])
        return document["data"]

    def answers(self) -> bool:
        """Whether the server is up and the definitions are loaded."""
        try:
            found = self.ask(
                "{ repositoriesOrError { ... on RepositoryConnection { nodes { id } } } }"
            )
        except OSError:
            return False
        return bool(found["repositoriesOrError"].get("nodes"))

    def runs(self) -> list[dict[str, Any]]:
        """Every run, newest first, its tags as a dictionary."""
        found = self.ask(
            "{ runsOrError { ... on Runs { results { runId jobName status tags { key value } "
            "assetSelection { path } } } } }"
        )["runsOrError"]["results"]
        for run in found:
            run["tags"] = {tag["key"]: tag["value"] for tag in run["tags"]}
        return found

    def batches(self, asset: str = "tensor_shards") -> set[str]:
        """The partitions of an asset that are green."""
        answer = self.ask(
            "query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode "
            "{ assetPartitionStatuses { ... on DefaultPartitionStatuses "
            "{ materializedPartitions failedPartitions } } } } }",
            key={"path": [asset]},
        )["assetNodeOrError"]["assetPartitionStatuses"]
        return set(answer["materializedPartitions"])

    def start(self, kind: str, name: str) -> None:
        """Turn a ``sensor`` or a ``schedule`` on, as the toggle in the UI does."""
        answer = self.ask(
            f"mutation($s: {kind.title()}Selector!) {{ start{kind.title()}({kind}Selector: $s) "
            "{ __typename ... on PythonError { message } } }",
            s=self._selector(f"{kind}Name", name),
        )[f"start{kind.title()}"]
        assert "Error" not in answer["__typename"], answer

    def stop_automation(self, kind: str, name: str) -> None:
        """Turn it off again."""
        state = self.ask(
            "query($s: InstigationSelector!) { instigationStateOrError(instigationSelector: $s) "
            "{ ... on InstigationState { id } } }",
            s=self._selector("name", name),
        )["instigationStateOrError"]["id"]
        verb = {"sensor": "stopSensor", "schedule": "stopRunningSchedule"}[kind]
        answer = self.ask(f"mutation($i: String) {{ {verb}(id: $i) {{ __typename }} }}", i=state)
        assert "Error" not in answer[verb]["__typename"], answer

    def skip_reasons(self, name: str) -> list[str]:
        """What the ticks of a sensor or schedule said, newest first."""
        ticks = self.ask(
            "query($s: InstigationSelector!) { instigationStateOrError(instigationSelector: $s) "
            "{ ... on InstigationState { ticks(limit: 20) { skipReason error { message } } } } }",
            s=self._selector("name", name),
        )["instigationStateOrError"]["ticks"]
        assert not any(tick["error"] for tick in ticks), ticks
        return [tick["skipReason"] for tick in ticks if tick["skipReason"]]

    def backfill(self, assets: list[str], batches: list[str], config: Any = None) -> None:
        """What the dialog's button sends."""
        chosen = {"assetSelection": [{"path": [a]} for a in assets], "partitionNames": batches}
        answer = self.ask(
            "mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) "
            "{ __typename ... on PythonError { message } } }",
            p=chosen | ({"runConfigData": config} if config else {}),
        )["launchPartitionBackfill"]
        assert answer["__typename"] == "LaunchBackfillSuccess", answer

    def backfills(self) -> list[str]:
        """The states of all backfills."""
        found = self.ask(
            "{ partitionBackfillsOrError { ... on PartitionBackfills { results { status } } } }"
        )["partitionBackfillsOrError"]["results"]
        return [backfill["status"] for backfill in found]

    def reload(self) -> None:
        """Load the definitions anew, as the button under Deployment does."""
        self.ask(
            "mutation($n: String!) { reloadRepositoryLocation(repositoryLocationName: $n) "
            "{ __typename } }",
            n=_LOCATION,
        )

    @staticmethod
    def _selector(key: str, name: str) -> dict[str, str]:
        return {
            "repositoryName": "__repository__",
            "repositoryLocationName": _LOCATION,
            key: name,
        }


def _children(pid: int) -> list[int]:
    found = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in tasks.read_text().split()]
        except OSError:
            continue
    return found


def until(condition: Callable[[], Any], what: str, seconds: float = 180) -> Any:
    """Wait for something to become true; what it was then."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(1)


def say(line: str) -> None:
    print(f"{time.monotonic() - _BEGAN:5.0f} s  {line}", flush=True)


_BEGAN = time.monotonic()


class Browser:
    """A headless Chromium on the server's pages."""

    def __init__(self, stack: ExitStack, url: str) -> None:
        from playwright.sync_api import sync_playwright

        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-sync"]
        )
        stack.callback(browser.close)
        self.page = browser.new_page(viewport={"width": 1500, "height": 950})
        self.page.set_default_timeout(60_000)
        self.url = url

    def open(self, path: str) -> None:
        self.page.goto(self.url + path, wait_until="networkidle", timeout=120_000)

    def shot(self, name: str) -> None:
        self.page.screenshot(path=SHOTS / f"{name}.png")

    def see_materialized(self, count: int, name: str) -> None:
        """Wait until the partitions page shows that many green ones."""
        self.open("/assets/tensor_shards?view=partitions")
        self.page.get_by_text(f"Materialized ({count})").wait_for()
        self.shot(name)

    def materialize(self, path: str, partition: str) -> None:
        """Click through the dialog: one partition by name, or one of its buttons."""
        self.open(path)
        self.page.get_by_role("button", name="Materialize").first.click()
        button = self.page.get_by_role("button", name=partition, exact=True)
        if partition == "Missing":
            button.last.click()
        else:
            self.page.get_by_text("Select a partition or create one").last.click()
            self.page.get_by_text(partition, exact=True).locator("visible=true").last.click()
            self.page.get_by_text("Launch runs to materialize").click()  # closes the list
        self.shot("dialog")
        self.page.get_by_role("button", name="Launch").last.click()


def find_browser(stack: ExitStack, url: str) -> Browser | None:
    """A browser, or None with the reason said."""
    try:
        return Browser(stack, url)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        say(f"no browser, so nothing is clicked and the server is asked instead: {reason}")
        return None


GROUP = f"/locations/{_LOCATION}/asset-groups/ingest"


def click(server: Server, browser: Browser | None, batch: str) -> None:
    if browser:
        browser.materialize(GROUP, batch)
    else:
        server.backfill(INGEST, [batch])
    until(lambda: all(server.batches(a) == {batch} for a in INGEST), f"{batch} is green")
    if browser:
        browser.see_materialized(1, "batch-is-green")
    say(f"a click materialised {batch}, and only it")


def backfill(server: Server, browser: Browser | None, batches: list[str]) -> None:
    before = len(server.backfills())
    if browser:
        browser.materialize(GROUP, "Missing")
    else:
        server.backfill(INGEST, batches)
    until(lambda: len(server.backfills()) > before, "the backfill is there")
    until(lambda: set(server.backfills()) == {"COMPLETED_SUCCESS"}, "the backfill completes")
    assert len(server.batches()) == 1 + len(batches)
    if browser:
        browser.see_materialized(3, "backfill")
    say(f"a backfill of {len(batches)} batches completed")


def growth(server: Server, lab: Lab) -> None:
    before = {run["runId"] for run in server.runs()}
    added = lab.store.add("lab-b", profile=PROFILES[0], sample=f"{PROFILES[0]}.v0", duration_s=40)
    server.start("sensor", "new_batches")

    def new() -> list[dict[str, Any]]:
        return [run for run in server.runs() if run["runId"] not in before]

    until(lambda: any(run["status"] == "SUCCESS" for run in new()), "the new episode is ingested")
    until(lambda: any("current" in s for s in server.skip_reasons("new_batches")), "all is current")
    (run,) = new()
    assert run["tags"]["dagster/partition"].startswith("lab-b."), run
    server.stop_automation("sensor", "new_batches")
    say(f"the sensor saw {added.episode_id} arrive: one run, {run['tags']['dagster/partition']}")


def night(server: Server) -> None:
    server.start("schedule", "nightly")

    def retrains() -> list[dict[str, Any]]:
        found = [r for r in server.runs() if r["tags"].get("dagster/schedule_name") == "nightly"]
        running = [r for r in found if r["status"] in ("STARTED", "STARTING")]
        assert len(running) <= 2, "more trainings at once than the pool has places"
        assert not [r for r in found if r["status"] == "FAILURE"], found
        return found

    until(retrains, "the nightly schedule launches")
    say("the nightly schedule ticked and launched")
    until(lambda: {r["status"] for r in retrains()} == {"SUCCESS"}, "the retrains end", 420)
    until(lambda: any("nothing changed" in s for s in server.skip_reasons("nightly")), "a skip")
    server.stop_automation("schedule", "nightly")
    partitions = sorted(run["tags"]["dagster/partition"] for run in retrains())
    assert partitions == ["host", "sample", "time"], partitions
    say("one retrain a recipe, one after the other; then: nothing changed")


def drift(server: Server, browser: Browser | None, lab: Lab, batch: str) -> None:
    lab.drift()
    server.reload()
    before = {run["runId"] for run in server.runs()}
    server.backfill(["predictions"], [batch], SCORE)
    (run,) = until(lambda: [r for r in server.runs() if r["runId"] not in before], "a run")
    until(lambda: server.runs()[0]["status"] == "FAILURE", "predictions fail")
    if browser:
        browser.open(f"/runs/{run['runId']}")
        browser.page.get_by_text("unit was B/s, is now kB/s").first.wait_for()
        browser.shot("refused")
    log = server.ask(
        "query($i: ID!) { logsForRun(runId: $i) { ... on EventConnection { events "
        "{ ... on ExecutionStepFailureEvent { failureMetadata { description } } } } } }",
        i=run["runId"],
    )["logsForRun"]["events"]
    said = [e["failureMetadata"]["description"] for e in log if e.get("failureMetadata")]
    assert any(DRIFT in text for text in said), said
    say("after a drift, predictions fail and the difference is there to be read")


def headless(lab: Lab, batch: str) -> None:
    words = ("dagster", "job", "execute", "-m", "pipelines.definitions", "-j", "score")
    score = lab.tree / "score.yaml"
    score.write_text(json.dumps(SCORE))
    tags = ("--tags", json.dumps({"dagster/partition": batch}), "-c", str(score))
    refused = lab.command(*words, *tags)
    assert refused.returncode != 0
    assert DRIFT in refused.stdout + refused.stderr
    shutil.copy(ROOT / "features" / "registry.py", lab.tree / "features")
    good = lab.command(*words, *tags)
    assert good.returncode == 0, good.stderr[-2000:]
    wrong = lab.tree / "wrong.yaml"
    wrong.write_text(lab.config.read_text().replace("n_rounds", "n_roundz"))
    told = lab.command(*words, *tags, "-c", str(wrong))
    assert told.returncode != 0
    assert '"n_roundz"' in told.stdout + told.stderr, told.stderr[-2000:]
    assert "n_rounds?" in told.stdout + told.stderr, told.stderr[-2000:]  # it lists what there is
    say("headless: 0 where all is well, not 0 where it is refused or a setting is wrong")


def main() -> None:
    """Everything, one after the other; an AssertionError says what did not happen."""
    shutil.rmtree(SHOTS, ignore_errors=True)
    SHOTS.mkdir(parents=True)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="phasewatch-e2e-"))
        lab = Lab(Path(folder))
        server = Server(lab)
        stack.callback(server.stop)
        stack.callback(lambda: shutil.copy(server.log, SHOTS))
        until(server.answers, "the server answers", 120)
        say(f"Dagster is up: {server.url}")
        browser = find_browser(stack, server.url)
        first, *others = [f"{host}.2026-11-02" for host in ("lab-a", "lab-b", "lab-c")]
        try:
            click(server, browser, first)
            backfill(server, browser, others)
            growth(server, lab)
            night(server)
            drift(server, browser, lab, first)
        except BaseException:
            if browser:
                browser.shot("failed")
            raise
        headless(lab, first)
    say(f"all well; screenshots: {SHOTS}")


if __name__ == "__main__":
    main()
