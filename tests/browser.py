"""The hub's page in a real browser: what is *visible* of each event, and what a browser refuses.

For ``make live`` and for looking at the page by hand; nothing here is collected by pytest. Needs
Playwright (the extra ``e2e``) and a Chromium. ``SHOWN`` has a function for every type of event: it
opens the scene and fails with an ``AssertionError`` if the event cannot be seen there.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

Event = Mapping[str, Any]

WAIT_MS = 10_000
SCENES = {
    "live_detection": "live",
    "prediction": "episode",
    "phase": "mix",
    "attack_profile": "profiles",
    "model_metric": "models",
    "embedding": "embedding",
    "model_perf": "speed",
}
_LISTEN = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(
  `${event.effectiveDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`));
"""
_INK = """
(canvas) => {
  const { width, height } = canvas;
  const data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  let ink = 0;
  for (let i = 3; i < data.length; i += 4) if (data[i]) ink += 1;
  return ink / (width * height);
}
"""


class Screen:
    """An open page, and all that went wrong in it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url.rstrip("/")
        self.foreign: list[str] = []
        self.errors: list[str] = []
        page.set_default_timeout(WAIT_MS)
        page.add_init_script(_LISTEN)
        page.on("request", lambda request: self._request(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda line: self._console(line.type, line.text))
        page.goto(self.url)

    def _request(self, url: str) -> None:
        if not url.startswith((f"{self.url}/", "data:")):
            self.foreign.append(url)

    def _console(self, kind: str, text: str) -> None:
        # a hub that is away is part of what is tried; the page says so itself
        if (
            kind == "error"
            and "ERR_CONNECTION" not in text
            and "Failed to load resource" not in text
        ):
            self.errors.append(text)

    @property
    def violations(self) -> list[str]:
        """What the content security policy refused."""
        return list(self.page.evaluate("window.violations"))

    def scene(self, name: str) -> Locator:
        """A scene, made the one that is seen."""
        self.page.locator(f"#tab-{name}").click()
        panel = self.page.locator(f"#scene-{name}")
        _seen(panel)
        return panel

    def lane(self, event: Event) -> Locator:
        key = f"{event['source']} {event['host']}"
        return self.scene("live").locator(f'article[data-lane="{key}"]')

    def connection(self, state: str) -> None:
        """Wait until the page says that the connection is "open", "lost" or "connecting"."""
        _seen(self.page.locator(f'#connection[data-state="{state}"]'))

    def gap(self) -> str:
        """What the page says of events that it missed."""
        notice = self.page.locator(".notice.gap")
        _seen(notice)
        return notice.inner_text()

    def title(self, words: str) -> None:
        """Wait until the tab is called this."""
        from playwright.sync_api import expect

        expect(self.page).to_have_title(words, timeout=WAIT_MS)

    @contextmanager
    def in_background(self) -> Iterator[None]:
        """The page believes that its tab is not the one that is seen."""
        self.page.evaluate(
            "Object.defineProperty(document, 'hidden', {value: true, configurable: true})"
        )
        yield
        self.page.evaluate("delete document.hidden")

    def skip(self, name: str) -> None:
        """The link over the tabs, used in a scene, leads into that scene."""
        from playwright.sync_api import expect

        panel = self.scene(name)
        self.page.locator("a.skip").press("Enter")
        expect(self.page.locator("#scene")).to_be_focused(timeout=WAIT_MS)
        expect(self.page).to_have_url(f"{self.url}/#{name}", timeout=WAIT_MS)
        _seen(panel)

    def answer(self, event: Event, *, verdict: bool, note: str) -> None:
        """Answer the alarm of an event as an operator would, and see the answer."""
        lane = self.lane(event)
        lane.scroll_into_view_if_needed()  # lanes out of sight are not kept up to date
        row = lane.locator(f'[data-alarm="{event["alarm_id"]}"]')
        row.get_by_role("button", name=re.compile("^(Answer|Change)")).click()
        row.get_by_role("radio", name="True" if verdict else "False").check()
        row.get_by_label("Note").fill(note)
        row.get_by_role("button", name="Save answer").click()
        _seen(row.get_by_text(f"Answered {str(verdict).lower()}"))
        _seen(row.get_by_text(note))

    def clean(self) -> None:
        """Nothing was refused, nothing came from elsewhere, nothing failed."""
        assert not self.violations, self.violations
        assert not self.foreign, self.foreign
        assert not self.errors, self.errors


@contextmanager
def screen(
    url: str, *, width: int = 1280, height: int = 900, theme: str = "light"
) -> Iterator[Screen]:
    """The page of a hub in a headless Chromium.

    Args:
        url: of the hub, without a path.
        width, height: of the window, px.
        theme: "light" or "dark".
    """
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-sync"]
        )
        try:
            viewport = {"width": width, "height": height}
            yield Screen(browser.new_page(viewport=viewport, color_scheme=theme), url)
        finally:
            browser.close()


def live_detection(on: Screen, event: Event) -> None:
    """The lane of its host, what it says of the source, its phase, and its alarm."""
    lane = on.lane(event)
    _seen(lane.get_by_role("heading", name=event["host"], exact=True))
    _says(lane, event["model"])
    replay = event["source"] == "replay"
    assert lane.locator(".replay-strip").is_visible() == replay
    if replay:
        _seen(lane.locator(".replay-strip").get_by_text(event["replay_of"] or "a recording"))
        assert "repeating-linear-gradient" in lane.evaluate(
            "(lane) => getComputedStyle(lane).backgroundImage"
        )
    if event["filtered"] is None:
        _seen(lane.get_by_text("silent", exact=True).first)
        _drawn(lane.locator(".rows .silent"))
    else:
        _drawn(lane.locator(f".rows .bar.p-{event['filtered']}"))
        _inked(lane.locator(".score canvas"))
    if event["alarm"] != "none" and event["alarm_id"]:
        _seen(lane.locator(f'[data-alarm="{event["alarm_id"]}"]'))
    for source in event["coverage"]:
        _says(lane, f"Coverage of {source}")


def prediction(on: Screen, event: Event) -> None:
    """Both phases as bars of its episode, and its row in the table of windows."""
    panel = on.scene("episode")
    panel.get_by_label("Episode", exact=True).select_option(event["episode_id"])
    _drawn(panel.locator(f".rows .part-0.p-{event['actual']}"))
    _drawn(panel.locator(f".rows .part-1.p-{event['predicted']}"))
    _says(panel, event["model"])
    row = _table(panel, "Windows as a table").locator("tbody tr").filter(
        has=on.page.locator("th", has_text=re.compile(f"^{event['window']}$"))
    )  # fmt: skip
    _says(row, event["actual"])
    _says(row, event["predicted"])


def phase(on: Screen, event: Event) -> None:
    """The count of each phase, or the phase of a host."""
    panel = on.scene("mix")
    if event["mix"] is None:
        _says(panel.locator(".hosts li").filter(has_text=event["scope"]), event["phase"])
        return
    bar = panel.locator(".mix").filter(has=_exactly(on.page.locator("b"), event["scope"]))
    row = panel.locator("tbody tr").filter(has=_exactly(on.page.locator("th"), event["scope"]))
    for name, count in event["mix"].items():
        if count:
            _drawn(bar.locator(f".p-{name}"))
        _says(row, f"{count:,}")


def attack_profile(on: Screen, event: Event) -> None:
    """Its curve above the names of the phases."""
    panel = on.scene("profiles")
    panel.get_by_label("Profile", exact=True).select_option(event["name"])
    panel.get_by_label("Signal", exact=True).select_option(event["channel"])
    card = panel.locator("article.card").filter(
        has=on.page.locator("code", has_text=event["channel"])
    )
    card = card.filter(has=_exactly(on.page.locator("h3"), event["name"]))
    _seen(card.get_by_role("heading", name=event["name"], exact=True))
    _says(card, event["channel"])
    _says(card, f"{event['n_episodes']} episode")
    _inked(card.locator("canvas"))
    for name in ("clean", "armed", "infecting", "infected_running"):
        _seen(card.locator(".phase-axis").get_by_text(name, exact=True).first)


def model_metric(on: Screen, event: Event) -> None:
    """Its row in the panel of its recipe: the figure, its mark and its interval."""
    panel = on.scene("models")
    recipe = panel.locator("section.recipe").filter(
        has=on.page.get_by_role("heading", name=event["recipe"], exact=True)
    )
    row = recipe.locator("tr").filter(has=_exactly(on.page.locator("th"), event["model"]))
    _seen(row)
    kind = "baseline" if event["baseline"] else event["mode"]
    if event["value"] is None:
        return
    _says(row, f"{event['value']:.3f}")
    _drawn(row.locator(f".plot .mark.{kind}"))
    if event["low"] is not None:
        _drawn(row.locator(f".plot .range.{kind}"))


def embedding(on: Screen, event: Event) -> None:
    """Its cloud with the count of its phase; turning the cloud draws another picture."""
    panel = on.scene("embedding")
    _says(panel, event["model"])
    cloud = panel.locator("canvas")
    _inked(cloud)
    count = panel.locator("label.pick").filter(has_text=event["phase"]).first.inner_text()
    assert int(count.split()[-1].replace(",", "")) > 0, count
    before = cloud.screenshot()
    cloud.press("ArrowRight")
    assert cloud.screenshot() != before, "the arrow key turned nothing"
    _says(panel, "Two axes: the third is left out" if event["z"] is None else "axes")


def model_perf(on: Screen, event: Event) -> None:
    """Its row under the device that was measured, or its name among those that were not."""
    panel = on.scene("speed")
    name = f"{event['model']}_{event['mode']}"
    if event["latency_ms"] is None:
        _seen(panel.get_by_text(name, exact=True).first)
        return
    device = panel.get_by_role("region", name=event["device"], exact=True)
    row = device.locator("tbody tr").filter(has=_exactly(on.page.locator("th"), name))
    _seen(row)
    if event["macro_f1"] is not None:
        _says(row, f"{event['macro_f1']:.3f}")
        _drawn(device.locator(f'.plane .mark.{event["mode"]}[title^="{name}:"]'))
        _seen(_exactly(device.locator(".plane .name"), event["model"]).first)


SHOWN: dict[str, Callable[[Screen, Event], None]] = {
    "live_detection": live_detection,
    "prediction": prediction,
    "phase": phase,
    "attack_profile": attack_profile,
    "model_metric": model_metric,
    "embedding": embedding,
    "model_perf": model_perf,
}


def _seen(locator: Locator) -> None:
    from playwright.sync_api import expect

    expect(locator).to_be_visible(timeout=WAIT_MS)


def _says(locator: Locator, words: str) -> None:
    from playwright.sync_api import expect

    expect(locator).to_contain_text(words, timeout=WAIT_MS, use_inner_text=True)


def _exactly(locator: Locator, words: str) -> Locator:
    return locator.filter(has_text=re.compile(f"^{re.escape(words)}$"))


def _table(panel: Locator, name: str) -> Locator:
    """The table of a disclosure, opened."""
    details = panel.locator("details").filter(has_text=name).first
    if details.get_attribute("open") is None:
        details.locator("summary").click()
    _seen(details.locator("table"))
    return details.locator("table")


def _drawn(locator: Locator) -> None:
    """At least one of these has an area on the screen."""
    locator.first.wait_for(state="attached", timeout=WAIT_MS)
    boxes = [each.bounding_box() for each in locator.all()]
    assert any(box and box["width"] > 0.5 and box["height"] > 0.5 for box in boxes), boxes


def _inked(canvas: Locator) -> None:
    """Something is drawn on a canvas."""
    _seen(canvas)
    share = canvas.evaluate(_INK)
    assert share > 0.001, f"the canvas is empty: {share:.2%} of it is drawn"
