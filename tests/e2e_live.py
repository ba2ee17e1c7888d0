"""From a champion to a page, with nothing in between left out: ``make live``.

    make live

Needs what ``make run`` made. Promotes the model that is best on validation if there is no champion,
bundles it, starts a hub and a scorer that replays recorded attacks, opens the page in a headless
Chromium, and asserts what is visible. Midway the hub is killed and started again; one client of it
stands still all the time. Screenshots go to ``artifacts/e2e``.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import browser

ROOT = Path(__file__).resolve().parent.parent
ARTIFACTS = Path(os.environ.get("PHASEWATCH_ARTIFACTS") or ROOT / "artifacts")
SHOTS = ARTIFACTS / "e2e"
SPEED = 20
EPISODES = 3  # recorded attacks that are replayed, one after the other
WINDOWS_BEFORE_THE_KILL = 6


def main() -> int:
    began = time.monotonic()
    SHOTS.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        step("a champion")
        promote()
        step("its bundle")
        bundle = folder / "bundle"
        phasewatch("bundle", "--out", str(bundle))
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        hub = stack.enter_context(Program.running("hub", "--port", str(port)))
        wait_for(lambda: healthy(url), "the hub answers")
        stalled = stack.enter_context(stalled_client(port))
        step("what producers publish")
        phasewatch("produce", "all", "--to", url)
        events = latest(url)
        on = stack.enter_context(browser.screen(url))
        for kind in browser.SCENES:
            if kind != "live_detection":
                browser.SHOWN[kind](on, events[kind])
                shoot(on, browser.SCENES[kind])
                print(f"  {kind} is visible")
        step(f"a scorer, replaying at {SPEED} times")
        scorer = stack.enter_context(
            Program.running(
                "live", str(bundle), "--replay", *attacks(), "--speed", str(SPEED), "--to", url
            )
        )
        scorer.wait_for_events(WINDOWS_BEFORE_THE_KILL)
        shown = wait_for(lambda: latest(url).get("live_detection"), "a window reaches the hub")
        browser.SHOWN["live_detection"](on, shown)
        shoot(on, "live")
        step("the hub is killed and comes back")
        hub.kill()
        killed = time.time()
        on.connection("lost")
        before = len(scorer.events)
        scorer.wait_for_events(before + 5)
        hub = stack.enter_context(Program.running("hub", "--port", str(port)))
        wait_for(lambda: healthy(url), "the hub answers again")
        on.connection("open")
        print(f"  the page says: {on.gap()}")
        scorer.finish()
        wait_for(
            lambda: scorer.events[-1]["window"] in {event["window"] for event in received(url)},
            "what the scorer said while the hub was away arrives",
        )
        check_nothing_lost_or_doubled(scorer, received(url), killed)
        raised = [event for event in scorer.events if event["alarm"] == "raised"]
        print(f"  {len(scorer.events)} windows, {len(raised)} alarms raised")
        assert raised, "no alarm was raised on recorded attacks"
        known = [event for event in raised if event["at"] > killed]
        assert known, "no alarm was raised after the hub came back"
        on.answer(known[-1], verdict=True, note="a recorded attack")
        shoot(on, "live-answered")
        on.lane(known[-1]).screenshot(path=str(SHOTS / "lane.png"))
        step("a live machine beside a replay of it")
        check_live_beside_replay(on, url, scorer.events[-1])
        shoot(on, "live-beside-replay")
        step("the skip link")
        for name in browser.SCENES.values():
            on.skip(name)
        on.clean()
        print("  no violation of the content security policy, no foreign request, no error")
        assert stalled.fileno() >= 0
    print(f"all well, {time.monotonic() - began:.0f} s; screenshots in {SHOTS}")
    return 0


# --- what is run


class Program:
    """A command of phasewatch that runs in the background; its lines of JSON are kept."""

    def __init__(self, *words: str):
        self._err = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  it lives as long as this
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli.app", *words], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=self._err,
        )  # fmt: skip
        self.events: list[dict[str, Any]] = []

    @classmethod
    @contextmanager
    def running(cls, *words: str) -> Iterator[Program]:
        program = cls(*words)
        try:
            yield program
        finally:
            if program.process.poll() is None:
                program.process.terminate()
                program.process.wait(20)

    def wait_for_events(self, n: int) -> None:
        assert self.process.stdout is not None
        while len(self.events) < n:
            line = self.process.stdout.readline()
            assert line, f"it ended after {len(self.events)} events: {self.complaint()}"
            self.events.append(json.loads(line))

    def finish(self) -> None:
        assert self.process.stdout is not None
        self.events += [json.loads(line) for line in self.process.stdout]
        assert self.process.wait(30) == 0, self.complaint()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)

    def complaint(self) -> str:
        self._err.seek(0)
        return self._err.read()[-2000:]


def phasewatch(*words: str, may_fail: bool = False) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli.app", *words, "--json"], cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert may_fail or done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout) if done.stdout.strip() else {}


def promote() -> None:
    """Put the model in use that is best on validation, if there is none."""
    sys.path.insert(0, str(ROOT))
    from stages.champion import best_on_validation, read_champion
    from stages.project import Project
    from stages.workspace import Workspace

    workspace = Workspace(artifacts=str(ARTIFACTS.absolute()))
    champion = read_champion(workspace.champion_folder)
    if champion is None:
        best = best_on_validation(Project(workspace))
        assert best is not None, "nothing is trained; run: make run"
        why = "make live shows what a device does; the embedded corpus is small"
        phasewatch("promote", best.model, "--accept-alarms", why, "--why", "make live")
        champion = read_champion(workspace.champion_folder)
    print(f"  {champion.name if champion else 'none'}")


def attacks() -> list[str]:
    """Recorded episodes of the champion's test side that hold an attack."""
    import polars as pl

    from datasets.windows import read_dataset
    from stages.champion import read_champion
    from stages.project import Project
    from stages.workspace import Workspace

    workspace = Workspace(artifacts=str(ARTIFACTS.absolute()))
    champion = read_champion(workspace.champion_folder)
    assert champion is not None
    table = read_dataset(Project(workspace).existing("datasets", champion.served))
    test = table.filter((pl.col("split") == "test") & (pl.col("label") == "infected_running"))
    counted = test.group_by("episode_id").len().sort("len", "episode_id", descending=True)
    return counted["episode_id"].head(EPISODES).to_list()


# --- the hub, from outside


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def received(url: str) -> list[dict[str, Any]]:
    """The windows of the live scene that a new client is given."""
    return [event for event in state(url) if event["type"] == "live_detection"]


def state(url: str) -> list[dict[str, Any]]:
    """Everything that a new client is given at first."""
    events = []
    with urllib.request.urlopen(f"{url}/events", timeout=10) as stream:
        for line in stream:
            if line.startswith(b"event: live"):
                return events
            if line.startswith(b"data: ") and line[6:7] == b"{":
                event = json.loads(line[6:])
                if "type" in event:
                    events.append(event)
    return events


def latest(url: str) -> dict[str, dict[str, Any]]:
    """The last event of each type."""
    return {event["type"]: event for event in state(url)}


def check_nothing_lost_or_doubled(
    scorer: Program, got: list[dict[str, Any]], killed: float
) -> None:
    """Every window since the kill is there once; the page has said that there is a gap before."""
    windows = [(event["session"], event["window"]) for event in got]
    assert len(windows) == len(set(windows)), "a window came twice"
    sent = [(event["session"], event["window"]) for event in scorer.events]
    assert len(sent) == len(set(sent))
    later = [(e["session"], e["window"]) for e in scorer.events if e["at"] > killed]
    lost = [window for window in later if window not in windows]
    kept = 240  # windows per host and source that a hub keeps
    assert not lost[-kept:], f"{len(lost)} windows were lost: {lost[:5]}"
    print(f"  {len(windows)} windows after the restart: none lost, none doubled")


def check_live_beside_replay(on: browser.Screen, url: str, event: dict[str, Any]) -> None:
    """A live alarm is in the title, also of a tab in the background, and no replay hides it."""
    phase = {"phase": "clean", "filtered": "clean"}
    replay = event | phase | {"source": "replay", "alarm": "none", "alarm_id": None}
    live = replay | {"source": "live", "replay_of": None, "session": "e2e"}
    alarm = {"alarm": "raised", "alarm_id": "e2e-1"}
    post(url, live)
    with on.in_background():
        post(url, live | alarm | {"window": live["window"] + 1})
        on.title("▲ 1 alarm · phasewatch")
    post(url, replay | {"session": "e2e-replay"})
    browser.SHOWN["live_detection"](on, live | alarm)
    browser.SHOWN["live_detection"](on, replay)
    on.title("▲ 1 alarm · phasewatch")


def post(url: str, event: dict[str, Any]) -> None:
    request = urllib.request.Request(f"{url}/publish", json.dumps(event).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


@contextmanager
def stalled_client(port: int) -> Iterator[socket.socket]:
    """A client that asks for events and never reads them."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        yield client


# --- small things


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 60) -> Any:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError(f"waited {timeout_s:.0f} s in vain: {what}")


def shoot(on: browser.Screen, name: str) -> None:
    on.page.screenshot(path=str(SHOTS / f"{name}.png"))


def step(what: str) -> None:
    print(what, flush=True)


if __name__ == "__main__":
    sys.exit(main())
