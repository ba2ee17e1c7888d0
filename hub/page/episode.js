// The windows of one recorded episode: what was predicted beside what was true.

import { chooser, count, disclosure, fixed, h, heading, percent, plural, replace, table, unpublished } from "./dom.js";
import { inspectable } from "./inspect.js";
import { chip, legend, marks, PHASES, PhaseRows } from "./phases.js";
import { cell, centre, strideOf } from "./spans.js";

export const scene = {
  id: "episode",
  title: "Episode",
  types: ["prediction"],

  mount(panel, store, dirty) {
    this.store = store;
    this.none = unpublished("Held-out predictions of recorded episodes are", "replay");
    this.choice = chooser("Episode", dirty);
    this.rows = new PhaseRows(26);
    this.axis = h("div", { class: "axis", "aria-hidden": "true" });
    this.windows = [];
    this.range = [0, 1];
    this.figure = inspectable("Windows of the episode", [this.rows.element, this.axis], {
      windows: () => this.windows.length,
      share: (i) => (centre(this.windows[i]) - this.range[0]) / (this.range[1] - this.range[0]),
      words: (i) => spoken(this.windows[i]),
    });
    this.facts = h("div", { class: "numbers" });
    this.confusion = h("div");
    this.list = disclosure("Windows as a table", () => windowTable(this.windows));
    this.body = h("div", { class: "stack" },
      h("div", { class: "controls" }, this.choice.element), this.facts,
      h("div", { class: "keys" }, legend(), marks(
        ["bar", "upper bar: actual"], ["bar lower", "lower, pale bar: predicted"], ["thin", "line: filtered"], ["alarmed", "alarm stands"])),
      h("div", {}, this.figure.element, this.list.element),
      this.confusion);
    this.head = heading("Episode", "One recorded episode, window by window: the phase that the model predicted, next to the phase that the recording's labels give. A window is drawn around its centre, where its label is taken.");
    panel.append(this.head.element, this.none, this.body);
  },

  update() {
    const { episodes } = this.store;
    this.none.hidden = episodes.size > 0;
    this.body.hidden = episodes.size === 0;
    if (!episodes.size) return;
    this.choice.options([...episodes].map(([id, windows]) => [id, `${id} (${plural(windows.size, "window")})`]).sort());
    this.windows = [...episodes.get(this.choice.value).values()].sort((a, b) => a.start_s - b.start_s)
      .map((event) => ({ ...event, start: event.start_s, end: event.end_s }));
    const { windows } = this;
    const stride = strideOf(windows);
    this.range = [windows[0].start, windows.at(-1).end];
    const right = windows.filter((event) => event.predicted === event.actual).length;
    this.rows.draw(this.range, {
      bars: ["actual", "predicted"].map((name) => windows.map((event) => [...cell(event, stride), event[name]])),
      line: windows.filter((event) => event.filtered).map((event) => [...cell(event, stride), event.filtered]),
      alarmed: windows.filter((event) => event.alarm).map((event) => cell(event, stride)),
      words: `${plural(windows.length, "window")}, ${right} predicted as labelled.`,
    });
    this.axis.replaceChildren(...ticks(this.range, this.axis.clientWidth).map((at) => h("span", { vars: { left: `${(100 * (at - this.range[0])) / (this.range[1] - this.range[0])}%` } }, `${count(at)} s`)));
    this.facts.replaceChildren(...figures(windows, right));
    replace(this.confusion, h("h3", {}, "Actual and predicted"), confusion(windows));
    this.head.from(windows);
    this.list.refresh();
    if (this.shown !== this.choice.value) this.figure.forget();
    this.shown = this.choice.value;
  },
};

function ticks([from, to], width) {
  const step = [5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600].find((each) => (to - from) / each <= Math.max(3, Math.min(10, width / 70))) ?? 7200;
  const first = Math.ceil(from / step) * step;
  return Array.from({ length: Math.floor((to - first) / step) + 1 }, (_, i) => first + i * step);
}

function figures(windows, right) {
  const one = (value, words) => h("p", {}, h("b", {}, value), h("span", {}, words));
  const filtered = windows.filter((event) => event.filtered);
  const models = [...new Set(windows.map((event) => event.model))].join(", ");
  const recipes = [...new Set(windows.map((event) => event.recipe).filter(Boolean))].join(", ");
  return [
    one(percent(right / windows.length, 1), `as labelled: ${right} of ${plural(windows.length, "window")}`),
    filtered.length ? one(percent(filtered.filter((event) => event.filtered === event.actual).length / filtered.length, 1), "after the filter") : null,
    one(models, recipes ? `held out by recipe ${recipes}` : "not marked as held out"),
  ].filter(Boolean);
}

function confusion(windows) {
  const used = PHASES.filter((phase) => windows.some((event) => event.actual === phase || event.predicted === phase));
  const n = (actual, predicted) => windows.filter((event) => event.actual === actual && event.predicted === predicted).length;
  return table("Windows by actual phase (rows) and predicted phase (columns)",
    [{ name: "actual" }, ...used.map((name) => ({ name, number: true }))],
    used.map((actual) => [chip(actual), ...used.map((predicted) => {
      const cell = n(actual, predicted);
      return h("span", { class: !cell ? "soft" : actual === predicted ? "same" : "differs" }, String(cell));
    })]));
}

function spoken(event) {
  return `${fixed(event.start_s, 0)} s · actual ${event.actual} · predicted ${event.predicted}${event.predicted === event.actual ? "" : " (differs)"}${event.filtered ? ` · filtered ${event.filtered}` : ""}${event.alarm ? " · alarm" : ""}`;
}

function windowTable(windows) {
  return table("Windows of the episode",
    [{ name: "window", number: true }, { name: "start", number: true }, { name: "actual" }, { name: "predicted" }, { name: "filtered" }, { name: "alarm" }],
    windows.map((event) => [String(event.window), `${fixed(event.start_s, 0)} s`, event.actual,
      event.predicted === event.actual ? event.predicted : h("b", {}, `${event.predicted} ≠`), event.filtered ?? "–", { true: "stands", false: "none" }[String(event.alarm)] ?? "–"]));
}
