// How a signal runs through the attacks of a profile: median and quartiles, aligned by phase.

import uPlot from "./vendor/uPlot.js";
import { chooser, colour, compact, disclosure, h, heading, plural, say, table, unpublished } from "./dom.js";

/** The aligned axis: the points of each phase, in order. */
export const AXIS = [["clean", 10], ["armed", 5], ["infecting", 10], ["infected_running", 40], ["clean", 15]];
const CHART_PX = 170;
const ALL = "";
const MANY = 24; // cards at first, and by one press of the button

const SPANS = AXIS.reduce((spans, [phase, points]) => {
  const from = spans.length ? spans.at(-1).to : 0;
  return [...spans, { phase, from, to: from + points }];
}, []);

export const scene = {
  id: "profiles",
  title: "Attack profiles",
  types: ["attack_profile"],
  cards: new Map(),

  mount(panel, store, dirty) {
    this.store = store;
    this.none = unpublished("Medians and quartiles of recorded attacks are", "profiles");
    this.profile = chooser("Profile", dirty);
    this.channel = chooser("Signal", dirty);
    this.grid = h("div", { class: "cards" });
    this.shown = MANY;
    this.words = h("span", { class: "soft sub" });
    this.more = h("button", { type: "button", class: "quiet", on: { click: () => { this.shown += MANY; dirty(); } } });
    this.less = h("p", { class: "less", hidden: true }, this.words, this.more);
    this.body = h("div", { class: "stack" },
      h("div", { class: "controls" }, this.profile.element, this.channel.element),
      h("div", {}, h("ul", { class: "legend", "aria-label": "Marks" },
        h("li", {}, h("i", { class: "swatch median", "aria-hidden": "true" }), "median of the episodes"),
        h("li", {}, h("i", { class: "swatch band", "aria-hidden": "true" }), "middle half (25% to 75%)"))),
      this.grid, this.less);
    this.head = heading("Attack profiles", "How one channel changes during the attacks of each profile. All episodes are drawn on one axis that is divided by phase, so a phase has the same width in each, however long it lasted.");
    panel.append(this.head.element, this.none, this.body);
    this.sized = new ResizeObserver((entries) => {
      for (const { target } of entries) target.plot?.setSize({ width: target.clientWidth, height: CHART_PX });
    });
  },

  update() {
    const events = [...this.store.profiles.values()].sort((a, b) => a.name.localeCompare(b.name) || a.channel.localeCompare(b.channel));
    this.none.hidden = events.length > 0;
    this.body.hidden = events.length === 0;
    if (!events.length) return;
    const names = [...new Set(events.map((event) => event.name))];
    const channels = [...new Set(events.map((event) => event.channel))].sort();
    this.profile.options([[ALL, "all"], ...names.map((name) => [name, name])]);
    this.channel.options([[ALL, "all"], ...channels.map((name) => [name, name])]);
    const chosen = events.filter((event) => [ALL, event.name].includes(this.profile.value) && [ALL, event.channel].includes(this.channel.value));
    const shown = chosen.slice(0, this.shown);
    const left = chosen.length - shown.length;
    this.less.hidden = left === 0;
    say(this.words, `${shown.length} of ${chosen.length} are shown.`);
    say(this.more, `Show ${Math.min(left, MANY)} more`);
    const open = new Set();
    for (const [key, card] of this.cards) {
      if (shown.some((event) => event === card.event) && card.canvas.plot) continue;
      if (card.list.open) open.add(key);
      card.close();
      this.cards.delete(key);
    }
    for (const [i, event] of shown.entries()) {
      const key = `${event.name} ${event.channel}`;
      if (!this.cards.has(key)) this.cards.set(key, makeCard(event, this.sized, open.has(key)));
      const { element } = this.cards.get(key);
      if (this.grid.children[i] !== element) this.grid.insertBefore(element, this.grid.children[i] ?? null);
      this.cards.get(key).draw();
    }
    this.head.from(chosen.length ? chosen : events);
  },

  repaint() {
    for (const card of this.cards.values()) card.close();
    this.cards.clear();
  },
};

function makeCard(event, sized, open) {
  const canvas = h("div", { class: "curve", role: "img", "aria-label": words(event) });
  const phases = h("div", { class: "phase-axis", "aria-hidden": "true" },
    SPANS.map(({ phase, from, to }) => h("span", { vars: { "--points": String(to - from) } }, h("i", { class: `p-${phase}` }), h("span", {}, phase))));
  const list = disclosure("As a table", () => figures(event));
  const element = h("article", { class: "card" },
    h("h3", {}, event.name), h("p", { class: "soft sub" }, `${event.shape} · ${plural(event.n_episodes, "episode")}`),
    h("p", { class: "signal" }, h("code", {}, event.channel), h("span", { class: "soft" }, ` in ${event.unit}`)),
    canvas, phases, list.element);
  list.element.open = open;
  sized.observe(canvas);
  return {
    event, element, canvas, list: list.element,
    draw() {
      if (!canvas.plot && canvas.clientWidth) canvas.plot = plot(event, canvas);
    },
    close() {
      sized.unobserve(canvas);
      canvas.plot?.destroy();
      element.remove();
    },
  };
}

function plot(event, canvas) {
  const [soft, grid, line, band] = ["soft", "grid", "c0", "band"].map(colour);
  const axis = { stroke: soft, font: "11px system-ui, sans-serif", grid: { stroke: grid, width: 1 }, ticks: { show: false } };
  const x = event.curve.map((_, i) => i + 0.5);
  const edge = { width: 0, points: { show: false } };
  return new uPlot({
    width: canvas.clientWidth,
    height: CHART_PX,
    padding: [8, 0, 0, 0],
    cursor: { show: false },
    legend: { show: false },
    scales: { x: { time: false, range: () => [0, x.length] }, y: { range: (_, low, high) => (high === null ? [0, 1] : [Math.min(0, low), high * 1.06 || 1]) } },
    axes: [
      { ...axis, size: 4, splits: () => SPANS.slice(1).map(({ from }) => from), values: () => [] },
      { ...axis, size: 52, gap: 6, space: 34, values: (_, splits) => splits.map(compact) },
    ],
    series: [{}, { ...edge, stroke: band }, { ...edge, stroke: band }, { stroke: line, width: 1.9, points: { show: false } }],
    bands: [{ series: [1, 2], fill: band }],
  }, [x, event.p75, event.p25, event.curve], canvas);
}

/** What the curve does, by phase. */
function medians(event) {
  return SPANS.map(({ phase, from, to }) => {
    const known = event.curve.slice(from, to).filter((value) => value !== null).sort((a, b) => a - b);
    return [phase, known.length ? known[Math.floor(known.length / 2)] : null];
  });
}

function words(event) {
  return `${event.name}, ${event.channel}: typical median by phase: ${medians(event).map(([phase, value]) => `${phase} ${value === null ? "not known" : compact(value)}`).join(", ")} ${event.unit}.`;
}

function figures(event) {
  return table(`${event.channel} through ${event.name}, in ${event.unit}`,
    [{ name: "point", number: true }, { name: "phase" }, { name: "25%", number: true }, { name: "median", number: true }, { name: "75%", number: true }],
    event.curve.map((value, i) => [String(i + 1), SPANS.find(({ to }) => i < to).phase, compact(event.p25[i]), compact(value), compact(event.p75[i])]));
}
