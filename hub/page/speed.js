// How good a model is against what it costs per window, on a device that is named.

import { bytes, empty, fixed, h, heading, milliseconds, replace, table } from "./dom.js";

const LABEL_PX = 6.4; // of a letter
const ROW_PX = 15;
const MARGIN = 0.25; // of the axis, in powers of ten

export const scene = {
  id: "speed",
  title: "Speed",
  types: ["model_perf"],

  mount(panel, store, dirty) {
    this.store = store;
    this.none = empty("Latencies are measured and published by", "phasewatch produce perf");
    this.body = h("div", { class: "stack" });
    this.head = heading("Speed", "Macro F1 on test against the time that a model takes for one window. Left and up is better. A latency holds for the device that is named, and for no other.");
    panel.append(this.head.element, this.none, this.body);
    new ResizeObserver(() => dirty()).observe(this.body);
  },

  update() {
    const events = [...this.store.perf.values()];
    this.none.hidden = events.length > 0;
    this.body.hidden = events.length === 0;
    if (!events.length) return;
    const measured = events.filter((event) => event.latency_ms !== null);
    const known = new Set(measured.map(variant));
    const missing = events.filter((event) => event.latency_ms === null && !known.has(variant(event)));
    const devices = [...new Set(measured.map((event) => event.device))].sort();
    const width = Math.max(260, this.body.clientWidth);
    replace(this.body,
      ...devices.map((device) => deviceOf(device, measured.filter((event) => event.device === device), width)),
      ...(missing.length ? [notMeasured(missing)] : []));
    this.head.from(events);
  },
};

const variant = (event) => `${event.model}_${event.mode}`;

function deviceOf(device, events, width) {
  const placed = events.filter((event) => event.macro_f1 !== null);
  const element = h("section", { class: "device", "aria-label": device }, h("h3", {}, "Measured on ", device));
  if (placed.length) element.append(key(), scatter(placed, width));
  element.append(table(`Latency per window on ${device}`,
    [{ name: "variant" }, { name: "recipe" }, { name: "macro F1", number: true }, { name: "median", number: true }, { name: "99 %", number: true }, { name: "size", number: true }],
    [...events].sort((a, b) => a.latency_ms - b.latency_ms).map((event) => [variant(event), event.recipe, fixed(event.macro_f1), milliseconds(event.latency_ms), event.latency_p99_ms === null || event.latency_p99_ms === undefined ? "–" : milliseconds(event.latency_p99_ms), bytes(event.size_bytes)])));
  return element;
}

function key() {
  return h("ul", { class: "legend", "aria-label": "Marks" },
    h("li", {}, h("i", { class: "mark realistic", "aria-hidden": "true" }), "realistic"), h("li", {}, h("i", { class: "mark oracle", "aria-hidden": "true" }), "oracle"),
    h("li", {}, h("i", { class: "swatch whisker", "aria-hidden": "true" }), "median to 99 % of windows"),
    h("li", {}, h("b", { class: "ink" }, "bold"), "none of its mode is both faster and better here"));
}

function scatter(events, width) {
  const times = events.flatMap((event) => [event.latency_ms, event.latency_p99_ms ?? event.latency_ms]).filter((value) => value > 0);
  const low = Math.log10(Math.min(...times)) - MARGIN;
  const high = Math.log10(Math.max(...times)) + MARGIN;
  const marked = high - low > 2.5 ? [1] : [1, 2, 5];
  const f1 = events.map((event) => event.macro_f1);
  const bottom = Math.max(0, Math.floor(Math.min(...f1) * 10 - 0.3) / 10);
  const top = Math.min(1, Math.ceil(Math.max(...f1) * 10 + 0.3) / 10);
  const x = (ms) => (Math.log10(Math.max(ms, 10 ** low)) - low) / (high - low);
  const y = (value) => (top === bottom ? 0.5 : (value - bottom) / (top - bottom));
  const lines = [];
  for (let power = Math.floor(low); power <= high; power++) {
    for (const at of marked.map((step) => step * 10 ** power).filter((ms) => Math.log10(ms) >= low && Math.log10(ms) <= high)) {
      lines.push(h("span", { class: "x-line", vars: { left: `${100 * x(at)}%` } }, h("span", {}, milliseconds(at))));
    }
  }
  const steps = Math.round((top - bottom) * 10);
  for (let i = 0; i <= steps; i++) lines.push(h("span", { class: "y-line", vars: { bottom: `${(100 * i) / Math.max(1, steps)}%` } }, h("span", {}, (bottom + i / 10).toFixed(1))));
  const inner = width - 70;
  const height = 340;
  const front = (event) => !events.some((other) => other !== event && other.mode === event.mode && other.latency_ms <= event.latency_ms && other.macro_f1 >= event.macro_f1 && (other.latency_ms < event.latency_ms || other.macro_f1 > event.macro_f1));
  const ordered = [...events].sort((a, b) => Number(front(b)) - Number(front(a)) || b.macro_f1 - a.macro_f1);
  const taken = ordered.map((event) => [x(event.latency_ms) * inner - 6, (1 - y(event.macro_f1)) * height - 6, 12, 12]);
  for (const event of ordered) {
    if (event.latency_p99_ms) taken.push([x(event.latency_ms) * inner, (1 - y(event.macro_f1)) * height - 1, (x(event.latency_p99_ms) - x(event.latency_ms)) * inner, 2]);
  }
  const marks = ordered.map((event) => {
    const [px, py] = [x(event.latency_ms) * inner, (1 - y(event.macro_f1)) * height];
    const place = labelPlace(event.model, px, py, inner, taken);
    return [
      event.latency_p99_ms && h("i", { class: `range ${event.mode}`, vars: { left: `${100 * x(event.latency_ms)}%`, width: `${100 * (x(event.latency_p99_ms) - x(event.latency_ms))}%`, bottom: `${100 * y(event.macro_f1)}%` } }),
      h("i", { class: `mark ${event.mode}`, title: `${variant(event)}: ${milliseconds(event.latency_ms)}, macro F1 ${fixed(event.macro_f1)}`, vars: { left: `${100 * x(event.latency_ms)}%`, bottom: `${100 * y(event.macro_f1)}%` } }),
      place && h("span", { class: front(event) ? "name front" : "name", vars: { left: `${place[0]}px`, top: `${place[1]}px` } }, event.model),
    ];
  });
  const words = `Macro F1 against latency of ${events.length} variants; the table below has the figures.`;
  return h("div", { class: "scatter", role: "img", "aria-label": words },
    h("p", { class: "y-name", "aria-hidden": "true" }, "macro F1"), h("div", { class: "plane", vars: { height: `${height}px` }, "aria-hidden": "true" }, lines, marks.flat()),
    h("p", { class: "x-name", "aria-hidden": "true" }, "latency per window, logarithmic"));
}

/** A free place for a name beside its mark, or null: it is in the table, and in the mark's title. */
function labelPlace(words, px, py, width, taken) {
  const w = words.length * LABEL_PX;
  const tries = [[px + 9, py - 8], [px - w - 9, py - 8], [px - w / 2, py - 24], [px - w / 2, py + 8], [px + 6, py - 21], [px + 6, py + 6]];
  const free = tries.find(([left, top]) => left >= 0 && left + w <= width && top > -12 && taken.every(([l, t, tw, th]) => left + w < l || l + tw < left || top + ROW_PX < t || t + th < top));
  if (free) taken.push([free[0], free[1], w, ROW_PX]);
  return free ?? null;
}

function notMeasured(events) {
  return h("section", {}, h("h3", {}, "Not measured"),
    h("ul", { class: "plain" }, events.map((event) => h("li", {}, h("b", {}, variant(event)), h("span", { class: "soft" }, `recipe ${event.recipe} · macro F1 ${event.macro_f1 === null ? "could not be computed" : fixed(event.macro_f1)}${event.size_bytes ? ` · ${bytes(event.size_bytes)}` : ""} · not measured`)))));
}
