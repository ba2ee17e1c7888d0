// How good a model is against what it costs per window, on a device that is named.

import { bytes, fixed, h, heading, milliseconds, replace, s, table, unpublished } from "./dom.js";

const ROW_PX = 15; // height of a name
const GAP_PX = 10; // from the middle of a mark to its name
const SIDES_PX = 70; // left and right of the plane, as in the style sheet
const MARGIN = 0.25; // of the axis, in powers of ten

export const scene = {
  id: "speed",
  title: "Speed",
  types: ["model_perf"],

  mount(panel, store, dirty) {
    this.store = store;
    this.none = unpublished("Latencies are measured and", "perf");
    this.body = h("div", { class: "stack" });
    this.head = heading("Speed", "Macro F1 on test against the time that a model takes for one window. Further left and higher is better. A latency holds only for the named device.");
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
    [{ name: "variant" }, { name: "recipe" }, { name: "macro F1", number: true }, { name: "median", number: true }, { name: "99%", number: true }, { name: "size", number: true }],
    [...events].sort((a, b) => a.latency_ms - b.latency_ms).map((event) => [variant(event), event.recipe, fixed(event.macro_f1), milliseconds(event.latency_ms), event.latency_p99_ms === null || event.latency_p99_ms === undefined ? "–" : milliseconds(event.latency_p99_ms), bytes(event.size_bytes)])));
  return element;
}

function key() {
  return h("ul", { class: "legend", "aria-label": "Marks" },
    h("li", {}, h("i", { class: "mark realistic", "aria-hidden": "true" }), "realistic"), h("li", {}, h("i", { class: "mark oracle", "aria-hidden": "true" }), "oracle"),
    h("li", {}, h("i", { class: "swatch whisker", "aria-hidden": "true" }), "median to 99th percentile"),
    h("li", {}, h("b", { class: "ink" }, "bold"), "no other model of its mode is both faster and better here"));
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
  const inner = width - SIDES_PX;
  const height = 340;
  const front = (event) => !events.some((other) => other !== event && other.mode === event.mode && other.latency_ms <= event.latency_ms && other.macro_f1 >= event.macro_f1 && (other.latency_ms < event.latency_ms || other.macro_f1 > event.macro_f1));
  const ordered = [...events].sort((a, b) => Number(front(b)) - Number(front(a)) || b.macro_f1 - a.macro_f1);
  const places = ordered.map((event) => [x(event.latency_ms) * inner, (1 - y(event.macro_f1)) * height]);
  const taken = places.map(([px, py]) => [px - 7, py - 7, 14, 14]);
  const whiskers = ordered.map((event, i) => [places[i][0], places[i][1] - 1, (x(event.latency_p99_ms ?? event.latency_ms) - x(event.latency_ms)) * inner, 2]);
  const leaders = s("svg", { class: "leaders", width: inner, height });
  const marks = ordered.map((event, i) => {
    const [px, py] = places[i];
    const name = front(event) ? "name front" : "name";
    const place = labelPlace(textWidth(event.model, front(event)), px, py, [inner, height], taken, whiskers);
    if (place.far) leaders.append(s("line", { x1: px, y1: py, x2: place.x, y2: place.y }));
    return [
      event.latency_p99_ms && h("i", { class: `range ${event.mode}`, vars: { left: `${100 * x(event.latency_ms)}%`, width: `${100 * (x(event.latency_p99_ms) - x(event.latency_ms))}%`, bottom: `${100 * y(event.macro_f1)}%` } }),
      h("i", { class: `mark ${event.mode}`, title: `${variant(event)}: ${milliseconds(event.latency_ms)}, macro F1 ${fixed(event.macro_f1)}`, vars: { left: `${100 * x(event.latency_ms)}%`, bottom: `${100 * y(event.macro_f1)}%` } }),
      h("span", { class: name, vars: { left: `${place.left}px`, top: `${place.top}px` } }, event.model),
    ];
  });
  const words = `Macro F1 against latency of ${events.length} variants; the table below has the figures.`;
  return h("div", { class: "scatter", role: "img", "aria-label": words },
    h("p", { class: "y-name", "aria-hidden": "true" }, "macro F1"), h("div", { class: "plane", vars: { height: `${height}px` }, "aria-hidden": "true" }, lines, leaders, marks.flat()),
    h("p", { class: "x-name", "aria-hidden": "true" }, "latency per window, logarithmic"));
}

/**
 * Where a name stands: as near to its mark as it can without covering a mark or a name, and without
 * crossing the lines of others if there is room. A leader goes to one that is `far`.
 */
function labelPlace(w, px, py, [width, height], taken, whiskers) {
  const meets = ([l, t, tw, th], [left, top]) => left < l + tw && l < left + w && top < t + th && t < top + ROW_PX;
  let best = null;
  for (const dy of [0, -1, 1, -2, 2, -3, 3, -4, 4, -5, 5, -6, 6]) {
    for (const side of [1, -1, 0]) {
      if (!dy && !side) continue;
      const left = side === 0 ? px - w / 2 : px + side * (GAP_PX + w / 2) - w / 2;
      const top = py - ROW_PX / 2 + dy * (ROW_PX + 1);
      const inside = left >= 0 && left + w <= width && top >= 0 && top + ROW_PX <= height;
      if (!inside || taken.some((box) => meets(box, [left, top]))) continue;
      const cost = Math.abs(dy) + (side === 0 ? 0.5 : 0) + 3 * whiskers.filter((box) => meets(box, [left, top])).length;
      if (!best || cost < best.cost) best = { cost, left, top, far: Math.abs(dy) > 1, x: left + w / 2, y: top + (dy < 0 ? ROW_PX : 0) };
    }
  }
  best ??= { left: px - w / 2, top: py + GAP_PX, far: false }; // no room at all: over others rather than nowhere
  taken.push([best.left - GAP_PX / 2, best.top, w + GAP_PX, ROW_PX]);
  return best;
}

const canvas = document.createElement("canvas").getContext("2d");

function textWidth(words, bold) {
  canvas.font = `${bold ? 680 : 400} 12px system-ui, sans-serif`;
  return Math.ceil(canvas.measureText(words).width) + 2;
}

function notMeasured(events) {
  return h("section", {}, h("h3", {}, "Not measured"),
    h("ul", { class: "plain" }, events.map((event) => h("li", {}, h("b", {}, variant(event)), h("span", { class: "soft" }, `recipe ${event.recipe} · macro F1 ${event.macro_f1 === null ? "could not be computed" : fixed(event.macro_f1)}${event.size_bytes ? ` · ${bytes(event.size_bytes)}` : ""} · not measured`)))));
}
