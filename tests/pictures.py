"""The pictures of Dagster and of the live page that the docs show, made anew.

    PYTHONPATH=. python tests/pictures.py [NAME…]

They show what ``make run`` made, with a champion, and with a bundle and decisions in Dagster. Needs
Playwright (the extra ``e2e``) and a Chromium. Look at each picture before it is committed.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import browser
import e2e
import e2e_live

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
WIDTH = 1200
ATTACK = "01M88FV6MVB9G0SE15Y75AP9CP"  # of which the README says how to replay it
BATCH = "lab-a.2026-11-21"
BELOW = """
(words) => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const range = document.createRange();
  while (texts.nextNode()) {
    const at = texts.currentNode.data.indexOf(words);
    if (at < 0) continue;
    range.setStart(texts.currentNode, at);
    range.setEnd(texts.currentNode, at + words.length);
    const { left, top, bottom } = range.getBoundingClientRect();
    const seen = document.elementFromPoint(left + 2, top + 2); // not what the dialog covers
    if (seen && texts.currentNode.parentElement.contains(seen)) return bottom;
  }
  throw new Error(`not seen: ${words}`);
}
"""
GROUPS = ("ingest", "train", "evaluate", "score", "serve")


@dataclass(frozen=True)
class Made:
    """What ``make run`` made, as ``e2e.Server`` takes it."""

    tree: Path
    artifacts: Path  # a log is written beside it
    env: dict[str, str]


@contextmanager
def dagster(lab: Made | e2e.Lab, height: int) -> Iterator[tuple[e2e.Server, e2e.Browser]]:
    with ExitStack() as stack:
        server = e2e.Server(lab)  # type: ignore[arg-type]
        stack.callback(server.stop)
        e2e.until(server.answers, "the server answers")
        opened = e2e.Browser(stack, server.url)
        opened.page.set_viewport_size({"width": WIDTH, "height": height})
        yield server, opened


def made() -> None:
    """The graph by group, the plots of ``drift``, and the partitions of an asset."""
    from playwright.sync_api import expect

    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        with dagster(Made(ROOT, Path(folder) / "artifacts", env), 680) as (_, on):
            page = on.page
            page.set_viewport_size({"width": 1900, "height": 600})  # a smaller graph has no counts
            on.open("/asset-groups")
            page.get_by_text("Hide navigation").click()
            groups = [page.get_by_text(name, exact=True).last for name in GROUPS]
            for group in groups:
                group.wait_for()
            expect(page.get_by_text("fetching statuses")).to_have_count(0, timeout=180_000)
            boxes = [box for group in groups if (box := group.bounding_box())]
            left, top = (min(box[side] for box in boxes) for side in ("x", "y"))
            right, bottom = (max(box[side] for box in boxes) for side in ("x", "y"))
            clip = {"x": left - 40, "y": top - 40, "width": right - left + 290}
            shoot(on, "lineage", clip | {"height": bottom - top + 140})
            page.set_viewport_size({"width": WIDTH, "height": 680})
            on.open("/assets/drift?view=overview")
            page.get_by_role("button", name="Plots").click()
            shoot(on, "drift-plots")
            page.set_viewport_size({"width": WIDTH, "height": 560})
            on.open(f"/assets/tensor_shards?view=partitions&partition={BATCH}")
            page.get_by_text("Materialized (").wait_for()
            shoot(on, "backfill")


def live() -> None:
    """A replayed attack, and an operator's answer to its alarm."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bundle, port = f"{folder}/bundle", e2e_live.free_port()
        e2e_live.phasewatch("bundle", "--out", bundle)
        url = f"http://127.0.0.1:{port}"
        run = e2e_live.Program.running
        stack.enter_context(run("hub", "--port", str(port), "--artifacts", folder))
        e2e_live.wait_for(lambda: e2e_live.healthy(url), "the hub answers")
        words = ("--replay", ATTACK, "--speed", "0", "--to", url)
        scorer = stack.enter_context(run("live", bundle, *words))
        scorer.finish()
        on = stack.enter_context(browser.screen(url, width=1280))
        raised = next(event for event in scorer.events if event["alarm"] == "raised")
        on.answer(raised, verdict=True, note="a recorded attack")
        on.page.mouse.move(0, 0)
        on.lane(raised).screenshot(path=IMAGES / "live.png")


def refused() -> None:
    """What a change of the layout does to a checkpoint, in copies of the tree and the artifacts."""
    with tempfile.TemporaryDirectory(prefix="phasewatch-") as folder:
        tree, artifacts = Path(folder) / "tree", Path(folder) / "artifacts"
        for name in e2e.ROOMS - {"data"}:
            shutil.copytree(ROOT / name, tree / name)
        shutil.copy(ROOT / "pyproject.toml", tree)
        shutil.copytree(e2e_live.ARTIFACTS, artifacts)
        env = os.environ | {"PYTHONPATH": str(tree), "PHASEWATCH_ARTIFACTS": str(artifacts)}
        (Path(folder) / "store").symlink_to(ROOT / "data" / "store")
        env["PHASEWATCH_STORE"] = str(Path(folder) / "store")
        changed = Made(tree, artifacts, env)
        e2e.Lab.drift(changed)  # type: ignore[arg-type]
        with dagster(changed, 760) as (server, on):
            before = {run["runId"] for run in server.runs()}
            server.backfill(["predictions"], [BATCH], e2e.SCORE)
            (run,) = e2e.until(
                lambda: [r for r in server.runs() if r["runId"] not in before], "a run"
            )
            e2e.until(lambda: server.runs()[0]["status"] == "FAILURE", "predictions fail")
            on.open(f"/runs/{run['runId']}")
            on.page.get_by_text("unit was B/s, is now kB/s").first.wait_for()
            on.page.get_by_role("button", name="View full message").last.click()
            on.page.wait_for_timeout(1000)  # it opens
            # without the trace, which names folders of this machine
            height = on.page.evaluate(BELOW, "Retrain gbt_realistic") - 30
            shoot(on, "refused", {"x": 120, "y": 40, "width": 960, "height": height})


def shoot(on: e2e.Browser, name: str, clip: dict[str, float] | None = None) -> None:
    on.page.wait_for_timeout(2000)  # it draws what it has fetched
    on.page.screenshot(path=IMAGES / f"{name}.png", clip=clip)


PICTURES: dict[str, Callable[[], None]] = {
    "lineage": made,
    "drift-plots": made,
    "live": live,
    "backfill": made,
    "refused": refused,
}


if __name__ == "__main__":
    for make in dict.fromkeys(PICTURES[name] for name in sys.argv[1:] or PICTURES):
        make()
    for path in sorted(IMAGES.glob("*.png")):
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
