// The page: scenes as tabs, the connection, the theme, and when what is drawn. No scene is known
// here but by `SCENES`; what an event means is said in its scene.

import { clock, duration, h, now, plural, say, setClock, tick } from "./dom.js";
import { answers, listen } from "./stream.js";
import { Store } from "./store.js";
import { alarmsOf, scene as live } from "./live.js";
import { scene as episode } from "./episode.js";
import { scene as mix } from "./mix.js";
import { scene as profiles } from "./profiles.js";
import { scene as models } from "./models.js";
import { scene as embedding } from "./embedding.js";
import { scene as speed } from "./speed.js";

const SCENES = [live, episode, mix, profiles, models, embedding, speed];
const DRAW_MS = 250;
const TICK_MS = 1000;
const ANNOUNCE_MS = 3000;
const ANSWERS_MS = 30000;

const store = new Store();
const at = (id) => document.getElementById(id);

/* ---- scenes ---- */

const root = at("scene");
const dirty = new Set(SCENES);
let shown = null;

const tabs = SCENES.map((scene) => {
  scene.badge = h("span", { class: "badge", hidden: true });
  const tab = h("button", {
    type: "button", role: "tab", id: `tab-${scene.id}`, "aria-controls": `scene-${scene.id}`, "aria-selected": "false", tabindex: "-1",
    on: { click: () => show(scene), keydown: turn },
  }, scene.title, scene.badge);
  const panel = h("section", { role: "tabpanel", id: `scene-${scene.id}`, class: "scene", "aria-labelledby": `tab-${scene.id}`, tabindex: "-1", hidden: true });
  scene.mount(panel, store, () => soon(scene));
  root.append(panel);
  at("tabs").append(tab);
  return { scene, tab, panel };
});

function show(scene, focus = false) {
  shown = scene;
  for (const { scene: each, tab, panel } of tabs) {
    const on = each === scene;
    tab.setAttribute("aria-selected", String(on));
    tab.tabIndex = on ? 0 : -1;
    panel.hidden = !on;
    if (on && focus) tab.focus();
    if (on) tab.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  if (location.hash !== `#${scene.id}`) history.replaceState(null, "", `#${scene.id}`);
  dirty.add(scene);
  draw();
}

function turn(event) {
  const here = SCENES.indexOf(shown);
  const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: SCENES.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  show(SCENES.at(to % SCENES.length), true);
}

/** Draw a scene anew in the next frame: what a person does is answered at once. */
function soon(scene) {
  if (dirty.has(scene)) return;
  dirty.add(scene);
  requestAnimationFrame(() => scene === shown && draw());
}

function draw() {
  if (dirty.delete(shown)) shown.update();
  for (const scene of SCENES) {
    const badge = scene.badged?.(store) ?? "";
    say(scene.badge, badge);
    scene.badge.hidden = !badge;
  }
  title();
}

setInterval(() => {
  if (!document.hidden) draw();
}, DRAW_MS);
setInterval(() => {
  tick(document.body);
  status();
  shown.second?.();
}, TICK_MS);
document.addEventListener("visibilitychange", () => document.hidden || draw());
addEventListener("hashchange", byHash);

function byHash() { // the skip link's hash, or one that is none, changes no scene
  show(SCENES.find((scene) => `#${scene.id}` === location.hash) ?? shown ?? SCENES[0]);
}

function title() {
  const n = alarmsOf(store, "live");
  document.title = n ? `▲ ${plural(n, "alarm")} · phasewatch` : "phasewatch";
}

/* ---- the connection ---- */

let state = "connecting";
let lostAt = null;
let missed = 0;
let missedUnknown = false;
let news = false; // whether what comes is new: the latest of everything comes first, and is not

function status() {
  at("connection").dataset.state = state;
  const seconds = store.lastAt === null ? null : Math.max(0, Math.round(now() - store.lastAt));
  const words = {
    connecting: "Connecting to the hub…",
    lost: "Reconnecting…",
    open: "Connected",
  };
  const more = {
    connecting: "",
    lost: lostAt === null ? "" : `lost at ${clock(lostAt)}`,
    open: !news ? "" : seconds === null ? "no events yet" : seconds < 2 ? "" : `last event ${duration(seconds)} ago`,
  };
  say(at("connection-words"), words[state]);
  say(at("connection-more"), more[state]);
}

const notices = { gap: null, unknown: null };

function notice(kind, words, close) {
  notices[kind]?.remove();
  notices[kind] = words === null ? null : h("p", { class: `notice ${kind}` }, h("span", {}, words),
    close && h("button", { type: "button", class: "quiet", "aria-label": `Dismiss: ${words}`, on: { click: () => { notice(kind, null); close(); } } }, "Dismiss"));
  if (notices[kind]) at("notices").append(notices[kind]);
}

function gap(n) {
  if (n === null) missedUnknown = true;
  else missed += n;
  const events = missedUnknown ? (missed ? `At least ${plural(missed, "event")} missed` : "An unknown number of events missed") : `${plural(missed, "event")} missed`;
  notice("gap", `${events} while the connection was lost. What is shown may have gaps.`, () => { missed = 0; missedUnknown = false; });
}

listen({
  event(event) {
    // what was kept for us was heard when it was made, and is no sign of life
    const [type, change] = store.receive(event, news ? now() : Math.min(now(), event?.at ?? 0));
    if (type === null) {
      notice("unknown", `${plural(store.unknown, "event")} of a kind that this page does not know: not shown. Reload the page; the hub may be newer.`);
      return;
    }
    for (const scene of SCENES) if (scene.types.includes(type)) dirty.add(scene);
    if (document.hidden) title(); // nothing is drawn, and a browser may run timers once a minute
    if (change && news) announce(event, change);
  },
  gap,
  live(time) {
    news = true;
    document.body.dataset.loaded = ""; // before, nobody knows whether there is nothing to show
    if (time !== null) setClock(time);
  },
  state(word) {
    if (word !== "open") news = false;
    else if (state !== "open") refreshAnswers();
    if (word === "lost" && state !== "lost") lostAt = Date.now() / 1000;
    state = word;
    status();
  },
});

/* ---- what is read out: alarms, each once, a few at a time ---- */

const queue = new Map();
let waiting = null;

function announce(event, change) {
  const name = event.source === "replay" ? `${event.host} (replay)` : event.host;
  const words = {
    raised: `alarm raised, ${event.filtered ?? "silent"}`,
    cleared: "alarm cleared",
    silent: `silent: ${(event.silent ?? []).join(", ")}`,
    back: "no longer silent",
  }[change];
  queue.set(name, `${name}: ${words}.`);
  waiting ??= setTimeout(() => {
    const said = [...queue.values()];
    say(at("announcer"), said.length > 3 ? `${said.slice(0, 3).join(" ")} And ${plural(said.length - 3, "host")} more.` : said.join(" "));
    queue.clear();
    waiting = null;
  }, ANNOUNCE_MS);
}

/* ---- answers ---- */

async function refreshAnswers() {
  try {
    for (const each of await answers()) store.answers.set(each.alarm_id, each);
    dirty.add(live);
  } catch {
    // the hub is away, which is said already; answers are asked for again
  }
}
setInterval(() => document.hidden || state !== "open" || refreshAnswers(), ANSWERS_MS);

/* ---- light and dark ---- */

const THEMES = { auto: "system", light: "light", dark: "dark" };

function remembered(theme) {
  try {
    if (theme) localStorage.setItem("theme", theme);
    return localStorage.getItem("theme");
  } catch {
    return theme; // storage may be forbidden
  }
}

let theme = remembered();
function paint(next) {
  theme = Object.hasOwn(THEMES, next ?? "") ? next : "auto";
  document.documentElement.dataset.theme = theme;
  say(at("theme-name"), THEMES[theme]);
  at("theme").setAttribute("aria-label", `Theme: ${THEMES[theme]}. Change it.`);
  for (const scene of SCENES) {
    scene.repaint?.();
    dirty.add(scene);
  }
}
at("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  paint(names[(names.indexOf(theme) + 1) % names.length]);
  remembered(theme);
  draw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => paint(theme));

say(at("foot"), `Times are local (${Intl.DateTimeFormat().resolvedOptions().timeZone}). Only what was received is drawn. Windows older than a host's last twenty minutes are dropped.`);
paint(theme);
byHash();
status();
