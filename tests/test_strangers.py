"""A foreign page in a real browser, before Dagster and before the hub: it starts and reads nothing.

Needs Playwright (the extra ``e2e``) and a Chromium; skipped without them.
"""

from __future__ import annotations

import http.server
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from lab import LAUNCH, ROOT, Ui, job, running

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
EVIL = "evil.example"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]

ATTACK = """
const TO = %(to)s, PATHS = %(paths)s, BODIES = %(bodies)s, told = window.told = [];
const tell = (what) => (x) => { told.push(`${what}: ${x}`); };
const pending = [];
const later = (start) => pending.push(
  new Promise((done) => { start(done); setTimeout(done, 3000); }));
for (const path of PATHS) {
  for (const tag of ["img", "script", "iframe", "link", "embed", "video"]) later((done) => {
    const element = document.createElement(tag);
    if (tag === "link") element.rel = "stylesheet";
    element.onload = element.onerror = done;
    element[tag === "link" ? "href" : "src"] = TO + path;
    document.body.append(element);
  });
  for (const body of [undefined, ...BODIES]) {
    for (const type of ["text/plain", "text/plain; application/json",
                        "application/x-www-form-urlencoded", "application/json"]) {
      for (const mode of ["no-cors", "cors"]) {
        pending.push(fetch(TO + path, { method: "POST", mode, body, credentials: "include",
          headers: { "Content-Type": type } })
          .then((answer) => answer.text()).then((text) => text && tell("read")(text), () => {}));
      }
      if (body) navigator.sendBeacon(TO + path, new Blob([body], { type }));
    }
    later((done) => {
      const frame = document.createElement("iframe");
      frame.name = `f${Math.random()}`;
      frame.onload = done;
      const form = document.createElement("form");
      Object.assign(form, { method: "POST", action: TO + path, target: frame.name });
      form.enctype = "text/plain";
      const input = document.createElement("input");
      const [name, value] = (body || "a=b").split(/=(.*)/s);
      Object.assign(input, { name: body ? body.slice(0, -1) + ',"x":"' : name,
                             value: body ? '"}' : value });
      form.append(input);
      document.body.append(frame, form);
      form.submit();
    });
  }
}
later((done) => {
  const socket = new WebSocket(TO.replace("http", "ws") + "/graphql", "graphql-ws");
  socket.onopen = () => {
    tell("socket")("open");
    socket.send(JSON.stringify({ type: "connection_init" }));
    for (const body of BODIES) {
      socket.send(JSON.stringify({ id: "1", type: "start", payload: JSON.parse(body) }));
    }
  };
  socket.onmessage = (message) => tell("socket")(message.data);
  socket.onerror = socket.onclose = done;
});
later((done) => {
  const events = new EventSource(TO + "/events", { withCredentials: true });
  events.onmessage = (message) => tell("events")(message.data);
  events.onopen = () => tell("events")("open");
  events.onerror = done;
});
for (const path of ["/", "/server_info", "/healthz", "/answers", "/graphql"]) {
  pending.push(fetch(TO + path).then((a) => a.text()).then(tell("read"), () => {}));
}
Promise.allSettled(pending).then(() => { window.over = true; });
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser for which a name of a stranger leads to this machine, as by rebinding."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox", "--disable-gpu", "--disable-sync",
                f"--host-resolver-rules=MAP {EVIL} 127.0.0.1",
            ],
        )  # fmt: skip
        yield browser
        browser.close()


@contextmanager
def foreign_page(script: str) -> Iterator[int]:
    """A page of someone else's with a script; its port."""
    content = f"<!doctype html><body><script>{script}</script>".encode()

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def attack(browser: Browser, port: int, paths: list[str], bodies: list[str]) -> list[str]:
    """All that a foreign page can try, and by two names of it; what it learned."""
    to = f"http://127.0.0.1:{port}"
    script = ATTACK % {
        "to": json.dumps(to), "paths": json.dumps(paths), "bodies": json.dumps(bodies),
    }  # fmt: skip
    told: list[str] = []
    with foreign_page(script) as foreign:
        for name in (EVIL, "localhost"):  # another site, and another origin of the same machine
            context = browser.new_context()
            page = context.new_page()
            page.goto(to)  # a victim who is at home here, cookies and all
            page.goto(f"http://{name}:{foreign}/")
            page.wait_for_function("window.over", timeout=90_000)
            told += page.evaluate("window.told")
            context.close()
    return told


def rebound(browser: Browser, port: int, path: str, body: str) -> tuple[int, str]:
    """What a page sees that was loaded under a stranger's name which now leads here."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"http://{EVIL}:{port}/")
    answer = page.evaluate(
        "([path, body]) => fetch(path, { method: 'POST', body, "
        "headers: { 'Content-Type': 'application/json' } })"
        ".then(async (answer) => [answer.status, await answer.text()])",
        [path, body],
    )
    context.close()
    return answer[0], answer[1]


# --- Dagster


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    with running(tmp_path_factory.mktemp("strangers")) as started:
        yield started


def test_a_foreign_page_starts_and_reads_nothing_of_dagster(ui: Ui, chromium: Browser) -> None:
    launch = json.dumps({"query": LAUNCH, "variables": {"p": job("prune")}})
    inline = (
        'mutation { launchRun(executionParams: {mode: "default", selector: {'
        'repositoryLocationName: "phasewatch", repositoryName: "__repository__", '
        'jobName: "prune"}}) { __typename } }'
    )
    paths = [
        "/graphql", f"/graphql?query={quote(inline)}", "/report_asset_materialization/datasets",
    ]  # fmt: skip
    told = attack(chromium, ui.port, paths, [launch, f"[{launch}]"])
    assert ui.records() == ([], [], [])
    status, text = rebound(chromium, ui.port, "/graphql", launch)
    assert (status, json.loads(text)["code"]) == (403, "host")
    assert told == []
    assert ui.records() == ([], [], [])


def test_dagster_itself_still_works_in_a_browser(ui: Ui, chromium: Browser) -> None:
    """The page loads, follows events over its WebSocket, and starts a run by a click."""
    context = chromium.new_context(viewport={"width": 1500, "height": 950})
    page = context.new_page()
    page.set_default_timeout(60_000)
    sockets: list[str] = []
    page.on("websocket", lambda one: one.on("framereceived", lambda data: sockets.append(data)))
    page.goto(f"http://127.0.0.1:{ui.port}/locations/phasewatch/jobs/prune/playground")
    page.get_by_role("button", name=re.compile("Launch Run", re.IGNORECASE)).first.click()
    deadline = time.monotonic() + 180
    while not ui.records()[0]:
        assert time.monotonic() < deadline
        page.wait_for_timeout(500)
    page.wait_for_timeout(2000)
    context.close()
    assert len(ui.records()[0]) == 1
    assert any("connection_ack" in str(frame) for frame in sockets)


# --- the hub


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    artifacts = tmp_path_factory.mktemp("hub")
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli.app", "hub", "--port", str(port),
         "--artifacts", str(artifacts)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        assert process.stderr.readline().startswith("hub: ")
        yield port
    finally:
        process.terminate()
        assert process.wait(90) == 0
        process.stderr.close()


def newest(port: int) -> int:
    with urlopen(f"http://127.0.0.1:{port}/healthz", timeout=60) as answer:
        return int(json.load(answer)["newest"])


def test_a_foreign_page_writes_and_reads_nothing_of_the_hub(hub: int, chromium: Browser) -> None:
    event = {
        "type": "phase", "at": 1.0, "origin": "x", "scope": "lab-a", "phase": "clean",
    }  # fmt: skip
    bodies = [json.dumps(event), json.dumps([event])]
    assert attack(chromium, hub, ["/publish", "/answers"], bodies) == []
    assert newest(hub) == 0
    status, text = rebound(chromium, hub, "/publish", bodies[0])
    assert (status, json.loads(text)["code"]) == (403, "host")
    assert newest(hub) == 0
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{hub}/")
    page.evaluate("(body) => fetch('/publish', { method: 'POST', body })", bodies[0])
    context.close()
    assert newest(hub) == 1
