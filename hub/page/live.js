// What scorers say of their machines while it happens: a lane per host and source. A replay has
// its own lane, marked all across, so that nobody takes it for what happens now.

import uPlot from "./vendor/uPlot.js";
import { ago, clock, colour, day, disclosure, duration, empty, field, fixed, h, milliseconds, minute, now, percent, plural, say, since, table, when } from "./dom.js";
import { inspectable } from "./inspect.js";
import { chip, EDGE, GUTTER, HATCH_PX, legend, marks, PhaseRows } from "./phases.js";
import { alarmed, cell, centre, merged, silences, standing, strideOf } from "./spans.js";
import { answer } from "./stream.js";

const SPANS_S = [60, 120, 180, 300, 450, 600, 900, 1200]; // what a lane shows: the shortest that holds its windows
const TIMES_S = [5, 10, 15, 30, 60, 120, 180, 300, 600]; // between times on the axis: two fit a narrow screen
const SECONDS_S = 300; // up to here the axis has seconds
const STALE_S = 20; // when the hub takes a host for silent: SCORER_SILENT_S of live/silence.py
const SHIFT_S = 600; // how far a silent lane moves on before it stands still
const SCORE_PX = 136; // as in the style sheet
const FULL_BAR = 2; // log-odds; if no reason is that strong, no bar is full
const SHOWN_ALARMS = 3;
const NOTE_LENGTH = 500;

/** How many lanes are under alarm, live or in a replay. */
export const alarmsOf = (store, source) => [...store.lanes.values()].filter((lane) => lane.source === source && standing(lane.last)).length;
/** Put children in order, moving as few as need be. */
function arrange(parent, wanted) {
  wanted.forEach((node, i) => {
    if (parent.children[i] !== node) parent.insertBefore(node, parent.children[i] ?? null);
  });
}

/** What is silent, in words: of a whole machine its name alone. */
const quiet = ({ silent, host }) => (silent?.includes(host) ? host : (silent ?? []).join(", "));

export const scene = {
  id: "live",
  title: "Live",
  types: ["live_detection"],
  views: new Map(),

  mount(panel, store, dirty) {
    Object.assign(this, { store, dirty });
    this.none = empty("A scorer sends what it sees to the hub. To make a bundle and score a machine with it:", `phasewatch bundle --out bundle; phasewatch live bundle --this-machine --to ${location.origin}`);
    this.banner = h("p", { class: "replay-banner", hidden: true });
    this.overview = h("ul", { class: "overview", "aria-label": "Hosts" });
    this.lanes = h("div", { class: "lanes" });
    this.key = h("div", { class: "key" }, legend(), marks(
      ["bar", "filtered phase"], ["thin", "phase of the window alone"], ["curve", "alarm score"], ["threshold", "its threshold"],
      ["alarmed", "alarm stands"], ["silent", "silent"]));
    panel.append(
      h("header", {}, h("h2", {}, "Live"), h("p", { class: "about" }, "The phase of each machine, window by window, for up to the last twenty minutes; whether an alarm stands, and which channels argue for it.")),
      this.banner, this.overview, this.none, this.key, this.lanes);
    this.watch = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        const view = this.views.get(entry.target.dataset.lane);
        if (view) view.onScreen = entry.isIntersecting;
      }
      dirty();
    }, { rootMargin: "200px" });
  },

  update() {
    const { store, views } = this;
    const lanes = store.sorted();
    this.none.hidden = lanes.length > 0;
    this.key.hidden = lanes.length === 0;
    for (const [key, view] of views) {
      if (store.lanes.has(key)) continue;
      view.close();
      views.delete(key);
    }
    for (const [i, lane] of lanes.entries()) {
      if (!views.has(lane.key)) {
        const view = new LaneView(lane, store, this.dirty);
        views.set(lane.key, view);
        this.lanes.insertBefore(view.element, this.lanes.children[i] ?? null);
        this.watch.observe(view.element);
      }
      views.get(lane.key).update();
    }
    // a lane that somebody is in stays where it is
    if (!this.lanes.contains(document.activeElement)) arrange(this.lanes, lanes.map((lane) => views.get(lane.key).element));
    this.head(lanes);
  },

  head(lanes) {
    const replays = lanes.filter((lane) => lane.source === "replay");
    this.banner.hidden = replays.length === 0;
    const names = [...new Set(replays.map((lane) => lane.last.replay_of ?? "a recording"))].join(", ");
    say(this.banner, replays.length === lanes.length ? `Replay of ${names}. Nothing on this page is happening now.` : `${plural(replays.length, "lane")} below: replay of ${names}, not happening now.`);
    this.overview.hidden = lanes.length < 2;
    const chips = lanes.map(({ key, last }) => {
      const words = standing(last) ? "alarm" : last.phase === null ? "silent" : last.filtered;
      return `${key}|${words}|${last.filtered}`;
    }).join();
    if (chips === this.chips) return;
    this.chips = chips;
    this.overview.replaceChildren(...lanes.map(({ key, host, source, last }) =>
      h("li", { class: standing(last) ? "alarm" : null },
        h("button", { type: "button", class: "hop", on: { click: () => this.views.get(key).element.scrollIntoView({ block: "start" }) } },
          h("b", {}, host), last.filtered ? chip(last.filtered) : h("span", { class: "soft" }, "silent"),
          standing(last) && h("span", { class: "alarm-word" }, "▲ alarm"), source === "replay" && h("span", { class: "tag replay" }, "replay")))));
  },

  badged(store) {
    const n = alarmsOf(store, "live");
    return n ? `▲ ${n}` : alarmsOf(store, "replay") ? "▲ replay" : "";
  },

  second() {
    for (const view of this.views.values()) view.move();
  },

  repaint() {
    for (const view of this.views.values()) view.repaint();
  },
};

class LaneView {
  constructor(lane, store, dirty) {
    Object.assign(this, { lane, store, dirty, forms: new Map(), onScreen: true, allAlarms: false });
    this.kind = h("span", { class: "tag" });
    this.what = h("p", { class: "soft sub" });
    this.phase = h("div", { class: "now-phase" });
    this.alarm = h("div", { class: "now-alarm" });
    this.stale = h("p", { class: "stale", hidden: true });
    this.rows = new PhaseRows();
    this.chart = h("div", { class: "score", role: "img" });
    this.range = [0, 1];
    this.strip = h("p", { class: "replay-strip", hidden: true });
    this.figure = inspectable(`${lane.name}: its last windows`, [this.rows.element, this.chart], {
      windows: () => lane.windows.length,
      share: (i) => this.share(lane.windows[i]),
      words: (i) => spoken(lane.windows[i]),
    });
    this.why = h("section", { class: "why" });
    this.facts = h("dl", { class: "facts" });
    this.from = h("div");
    this.alarms = h("section", { class: "alarms", hidden: true });
    this.list = disclosure("Windows as a table", () => windowTable(lane));
    this.element = h("article", { class: "lane", "aria-label": lane.name, "data-lane": lane.key },
      this.strip,
      h("div", { class: "sheet" },
        h("header", {}, h("div", { class: "who" }, h("h3", {}, lane.host), this.kind, this.what), this.phase, this.alarm),
        this.stale,
        h("div", { class: "body" },
          h("div", { class: "figures" }, this.figure.element, this.list.element),
          h("section", { class: "aside", "aria-label": `${lane.name}: last window` }, this.why, this.facts)),
        this.alarms, this.from));
    this.sized = new ResizeObserver(() => this.plot?.setSize({ width: this.chart.clientWidth, height: SCORE_PX }));
    this.sized.observe(this.chart);
  }

  close() {
    this.plot?.destroy();
    this.sized.disconnect();
    this.element.remove();
  }

  repaint() {
    this.plot?.destroy();
    this.plot = null;
    this.lane.changed = true;
  }

  share(event) {
    const at = (centre(event) - this.range[0]) / (this.range[1] - this.range[0]);
    return at < 0 || at > 1 ? null : at;
  }

  /** What changes with time alone. */
  move() {
    const { last, heard, source } = this.lane;
    const late = now() - heard;
    const replay = source === "replay";
    this.stale.hidden = late < STALE_S || (!replay && last.phase === null);
    this.stale.classList.toggle("done", replay);
    if (!this.stale.hidden) {
      say(this.stale, replay ? `The last window of this replay came ${duration(late)} ago: it has ended or is paused.` : `Nothing received from ${this.lane.host} for ${duration(late)}. What is shown below is the last that was received.`);
    }
    if (!replay && late > 1 && this.onScreen && !document.hidden) this.figures();
  }

  update() {
    const { lane } = this;
    this.answered();
    if (!lane.changed || !this.onScreen) return;
    lane.changed = false;
    const { last } = lane;
    const replay = lane.source === "replay";
    this.element.classList.toggle("is-replay", replay);
    this.element.classList.toggle("is-alarm", standing(last));
    this.kind.className = replay ? "tag replay" : "tag live";
    say(this.kind, replay ? "Replay" : "Live");
    this.strip.hidden = !replay;
    say(this.strip, replay ? `Replay of ${last.replay_of ?? "a recording"} · recorded ${day(last.start)}, not happening now` : "");
    say(this.what, `${last.model} · bundle ${last.bundle.slice(0, 12)} · session ${last.session.slice(0, 12)}`);
    this.phase.replaceChildren(...phaseNow(last));
    this.alarm.replaceChildren(...alarmNow(lane));
    this.why.replaceChildren(...whyNow(last));
    this.facts.replaceChildren(...factsNow(last));
    this.from.replaceChildren(origin(last));
    this.figures();
    this.alarmList();
    this.answered(); // a row that is new has no button yet, and this may be the last event
    this.list.refresh();
    this.move();
  }

  figures() {
    const { lane } = this;
    const { last, windows, heard } = lane;
    const stride = strideOf(windows);
    const right = lane.source === "live" ? last.end + Math.min(SHIFT_S, Math.max(0, now() - heard)) : last.end;
    this.range = [right - (SPANS_S.find((span) => windows[0].start >= right - span) ?? SPANS_S.at(-1)), right];
    this.alarmed = alarmed(windows, right, stride);
    this.silent = silences(windows, right);
    this.rows.draw(this.range, {
      bars: [windows.filter((event) => event.filtered !== null).map((event) => [...cell(event, stride), event.filtered])],
      line: windows.filter((event) => event.phase !== null).map((event) => [...cell(event, stride), event.phase]),
      alarmed: this.alarmed,
      silent: this.silent,
      words: summary(lane),
    });
    this.score(stride);
  }

  score(stride) {
    const { last } = this.lane;
    const windows = this.lane.windows.filter((event) => event.phase !== null);
    const data = [[], [], []];
    for (const [i, event] of windows.entries()) {
      if (i && centre(event) - centre(windows[i - 1]) > 1.6 * stride) {
        data[0].push(centre(windows[i - 1]) + stride);
        data[1].push(null);
        data[2].push(null);
      }
      data[0].push(centre(event));
      data[1].push(event.score);
      data[2].push(event.threshold);
    }
    this.chart.setAttribute("aria-label", `Alarm score, ${last.score === null ? "not known now" : `now ${fixed(last.score, 2)}`}, threshold ${fixed(last.threshold, 2)}`);
    if (!this.plot && this.chart.clientWidth) this.plot = this.makePlot(data);
    else this.plot?.setData(data);
  }

  makePlot(data) {
    const [ink, soft, grid, alarm, line, quiet] = ["ink", "soft", "grid", "alarm", "c0", "hatch"].map(colour);
    const font = "11px system-ui, sans-serif";
    const axis = { stroke: soft, font, grid: { stroke: grid, width: 1 }, ticks: { show: false } };
    return new uPlot({
      width: this.chart.clientWidth,
      height: SCORE_PX,
      padding: [8, EDGE, 0, 0],
      cursor: { show: false },
      legend: { show: false },
      scales: { x: { range: () => this.range }, y: { range: () => [0, 1] } },
      axes: [
        { ...axis, size: 24, gap: 4, space: 70, incrs: TIMES_S, values: (_, splits) => this.times(splits) },
        { ...axis, size: GUTTER, gap: 8, splits: () => [0, 0.5, 1], values: (_, splits) => splits.map(String) },
      ],
      series: [
        {},
        { stroke: line, width: 1.75, points: { show: false } },
        { stroke: ink, width: 1, dash: [5, 4], points: { show: false }, paths: uPlot.paths.stepped({ align: -1 }) },
      ],
      hooks: { drawClear: [(plot) => this.shade(plot, alarm, quiet)] },
    }, data, this.chart);
  }

  /** Words below the axis; none where the edge would cut them off. */
  times(splits) {
    const [from, to] = this.range;
    const words = to - from > SECONDS_S ? minute : clock;
    return splits.map((at) => (to - at < 0.03 * (to - from) ? "" : words(at)));
  }

  /** The same spans as behind the rows of phases. */
  shade(plot, alarm, quiet) {
    const { left, top, width, height } = plot.bbox;
    const { ctx } = plot;
    const ratio = devicePixelRatio || 1;
    const px = (spans) => spans.map((span) => span.map((at) => Math.min(left + width, Math.max(left, plot.valToPos(at, "x", true)))));
    ctx.save();
    ctx.fillStyle = alarm;
    for (const [a, b] of px(this.alarmed)) ctx.fillRect(Math.floor(a), top, Math.ceil(b) - Math.floor(a), height);
    ctx.fillStyle = quiet;
    for (const [a, b] of px(merged(this.silent))) for (let at = a; at < b; at += HATCH_PX * ratio) ctx.fillRect(at, top, ratio, height);
    ctx.restore();
  }

  /* ---- alarms and their answers ---- */

  alarmList() {
    const alarms = [...this.lane.alarms.values()].reverse();
    this.alarms.hidden = !alarms.length;
    if (!alarms.length) return;
    const shown = this.allAlarms ? alarms : alarms.slice(0, SHOWN_ALARMS);
    const current = this.lane.last;
    const rows = shown.map((alarm) => {
      const row = this.alarmRow(alarm);
      const open = alarm.until === null && standing(current) && current.alarm_id === alarm.id;
      const ended = alarm.until !== null ? `until ${clock(alarm.until)}, ${duration(alarm.until - alarm.from)}` : open ? "stands" : "end not received";
      say(row.time, `${alarm.seen ? "" : "at or before "}${when(alarm.from)}`);
      say(row.ended, ended);
      say(row.peak, alarm.peak === null ? "" : `peak score ${fixed(alarm.peak, 2)}`);
      row.element.classList.toggle("open", open);
      return row.element;
    });
    const more = alarms.length - shown.length;
    const wanted = [this.alarmHead ??= h("h4", {}, "Alarms"), ...rows];
    if (more > 0) {
      this.moreButton ??= h("button", { type: "button", class: "quiet", on: { click: () => { this.allAlarms = true; this.lane.changed = true; this.dirty(); } } });
      say(this.moreButton, `Show ${plural(more, "earlier alarm")}`);
      wanted.push(this.moreButton);
    }
    if (wanted.length !== this.alarms.children.length || wanted.some((node, i) => this.alarms.children[i] !== node)) this.rearrange(wanted);
    for (const id of this.forms.keys()) if (!this.lane.alarms.has(id)) this.forms.delete(id);
  }

  /** Put the rows in order without moving the one that has the focus. */
  rearrange(wanted) {
    for (const child of [...this.alarms.children]) if (!wanted.includes(child)) child.remove();
    arrange(this.alarms, wanted);
  }

  alarmRow(alarm) {
    if (this.forms.has(alarm.id)) return this.forms.get(alarm.id);
    const { first } = alarm;
    const row = { time: h("b"), ended: h("span"), peak: h("span"), answer: h("div", { class: "answer" }), alarm, state: "" };
    row.element = h("div", { class: "alarm-row", "data-alarm": alarm.id },
      h("div", { class: "alarm-when" }, h("span", { class: "alarm-word", "aria-hidden": "true" }, "▲"), row.time, row.ended, row.peak),
      h("p", { class: "alarm-why" }, first.phase === null ? `Silence of ${quiet(first)}` : first.why?.length ? ["Because of ", first.why.filter((each) => each.contribution > 0).map((each, i) => [i ? ", " : "", h("code", {}, each.channel)])].flat(3) : "No channel was named"),
      row.answer);
    this.forms.set(alarm.id, row);
    return row;
  }

  /** Show each alarm's answer, or how to give one. */
  answered() {
    for (const [id, row] of this.forms) {
      const given = this.store.answers.get(id);
      const state = row.editing ? "form" : given ? JSON.stringify(given) : "none";
      if (state === row.state) continue;
      row.state = state;
      if (state === "form") row.answer.replaceChildren(this.form(row, given));
      else if (given) row.answer.replaceChildren(...said(given), this.edit(row, "Change"));
      else row.answer.replaceChildren(this.edit(row, "Answer"));
    }
  }

  edit(row, word) {
    return h("button", { type: "button", class: "quiet", "aria-label": `${word}: was the alarm of ${when(row.alarm.from)} true?`, on: { click: () => {
      row.editing = true;
      this.answered();
      row.answer.querySelector("input").focus();
    } } }, word);
  }

  form(row, given) {
    const name = `verdict-${row.alarm.id}`;
    const problem = h("p", { class: "problem", role: "alert" });
    const note = h("input", { type: "text", name: "note", maxlength: NOTE_LENGTH, autocomplete: "off", value: given?.note ?? "" });
    const radio = (value, words) => h("label", { class: "pick" }, h("input", { type: "radio", name, value, required: true, checked: given && String(given.verdict) === value }), words);
    const close = () => {
      row.editing = false;
      this.answered();
      row.answer.querySelector("button")?.focus();
    };
    const save = h("button", { type: "submit", class: "solid" }, "Save answer");
    const submit = async (event) => {
      event.preventDefault();
      const verdict = new FormData(event.target).get(name) === "true";
      save.disabled = true;
      try {
        await answer(row.alarm, verdict, note.value.trim());
        this.store.answers.set(row.alarm.id, { alarm_id: row.alarm.id, host: row.alarm.host, verdict, note: note.value.trim(), at: now() });
        close();
      } catch (error) {
        say(problem, `Not saved. ${error.message}`);
      } finally {
        save.disabled = false;
      }
    };
    return h("form", { on: { submit, keydown: (event) => event.key === "Escape" && close() } },
      h("fieldset", {}, h("legend", {}, `Was the alarm of ${when(row.alarm.from)} true?`),
        radio("true", "True, an attack"), radio("false", "False, no attack")),
      field("Note", note),
      h("div", { class: "buttons" }, save, h("button", { type: "button", class: "quiet", on: { click: close } }, "Cancel")), problem);
  }
}

function origin(last) {
  return h("p", { class: "provenance" }, "From ", h("span", { class: "origin" }, last.origin),
    last.phase === null ? "" : ` · window ${last.source === "replay" ? "recorded" : "ended"} ${when(last.end)}`, " · published ", ago(last.at));
}

function said(given) {
  return [
    h("p", { class: "given" }, h("b", {}, given.verdict ? "✓ Answered true" : "✕ Answered false"), given.note ? ` “${given.note}”` : "", given.at ? [" · ", ago(given.at)] : ""),
  ];
}

function phaseNow(last) {
  if (last.filtered === null) return [h("b", { class: "silent-word" }, "silent"), h("p", { class: "soft sub" }, `nothing from ${quiet(last)} since ${when(last.start)}`)];
  const raw = last.phase === last.filtered ? "this window alone says the same" : `this window alone: ${last.phase}`;
  return [
    h("p", { class: "big" }, chip(last.filtered), last.confidence === null ? null : h("span", { class: "soft" }, percent(last.confidence))),
    h("p", { class: "soft sub" }, raw),
  ];
}

function alarmNow(lane) {
  const { last } = lane;
  const alarm = last.alarm_id ? lane.alarms.get(last.alarm_id) : null;
  if (standing(last)) {
    const length = !alarm ? null : lane.source === "live" ? since(lane.heard - (last.end - alarm.from)) : duration(last.end - alarm.from);
    return [
      h("b", { class: "alarm-word" }, h("span", { "aria-hidden": "true" }, "▲ "), alarm?.first.phase === null ? "Silence raised an alarm" : last.alarm === "raised" ? "Alarm raised" : "Alarm stands"),
      h("p", { class: "sub" }, alarm ? [alarm.seen ? "since " : "at least since ", when(alarm.from), " · ", length] : "start not received"),
    ];
  }
  const before = [...lane.alarms.values()].findLast((each) => each.until !== null);
  return [
    h("b", {}, last.alarm === "cleared" ? "Alarm cleared" : "No alarm"),
    h("p", { class: "soft sub" }, before ? `last one cleared at ${when(before.until)}` : "none in the windows received"),
  ];
}

function whyNow(last) {
  const head = h("h4", {}, "Why ", h("span", { class: "soft" }, "channels that argue for an alarm"));
  if (!last.why?.length) return [head, h("p", { class: "soft sub" }, last.phase === null ? "There is no window to explain." : "No channel was named for the last window.")];
  const most = Math.max(...last.why.map((each) => Math.abs(each.contribution)), FULL_BAR);
  return [head, h("ul", { class: "bars" }, last.why.map(({ channel, contribution }) =>
    h("li", {}, h("code", {}, channel), h("span", { class: "n" }, `${contribution < 0 ? "−" : "+"}${Math.abs(contribution).toPrecision(2)}`),
      h("i", { class: contribution < 0 ? "against" : "for", "aria-hidden": "true", vars: { "--share": `${(100 * Math.abs(contribution)) / most}%` } }))))];
}

function factsNow(last) {
  const fact = (name, ...value) => h("div", {}, h("dt", {}, name), h("dd", {}, ...value));
  const like = { true: h("b", { class: "warn" }, "⚠ unlike training"), false: "like training", null: last.phase === null ? "no window" : "not known" }[String(last.unlike)];
  return [
    fact("Alarm score", last.score === null ? "none" : h("b", {}, fixed(last.score, 2)), h("span", { class: "soft" }, last.score === null ? ", " : last.score >= last.threshold ? " ≥ " : " < ", `threshold ${fixed(last.threshold, 2)}`)),
    fact("Inputs", like),
    fact("Silent", last.silent?.length ? h("b", { class: "warn" }, `⚠ ${quiet(last)}`) : "none"),
    ...Object.entries(last.coverage).map(([source, share]) =>
      fact(`Coverage of ${source}`, h("span", { class: "meter", "aria-hidden": "true", vars: { "--share": `${100 * share}%` } }), h("span", { class: share < 0.5 ? "warn" : null }, percent(Math.floor(100 * share) / 100)))),
    ...(last.phase === null ? [] : [
      fact("Window", `${last.window}, ${clock(last.start)} to ${clock(last.end)}`),
      fact("Row to event", milliseconds(last.latency_ms)),
    ]),
  ];
}

function spoken(event) {
  if (event.phase === null) return `${clock(event.start)} to ${clock(event.end)} · silent: ${quiet(event)}`;
  return `${clock(event.start)} to ${clock(event.end)} · ${event.filtered} ${event.confidence === null ? "" : percent(event.confidence)} · this window alone ${event.phase} · score ${fixed(event.score, 2)}${event.alarm === "none" ? "" : ` · alarm ${event.alarm}`}${event.unlike ? " · unlike training" : ""}`;
}

function summary({ windows, name }) {
  const counts = new Map();
  for (const { filtered } of windows) counts.set(filtered ?? "silent", (counts.get(filtered ?? "silent") ?? 0) + 1);
  return `${name}: ${plural(windows.length, "window")}: ${[...counts].map(([phase, n]) => `${n} ${phase}`).join(", ")}.`;
}

function windowTable(lane) {
  const columns = [{ name: "from" }, { name: "filtered" }, { name: "window alone" }, { name: "score", number: true }, { name: "threshold", number: true }, { name: "alarm" }, { name: "training" }, { name: "window", number: true }];
  const rows = lane.windows.toReversed().map((event) => [
    when(event.start), event.filtered ?? "silent", event.phase ?? "silent", fixed(event.score, 3), fixed(event.threshold, 3), event.alarm, { true: "unlike", false: "like", null: "–" }[String(event.unlike)], event.phase === null ? null : String(event.window),
  ]);
  return table(`Windows of ${lane.name}, the newest first`, columns, rows);
}
