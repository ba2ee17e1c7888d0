// The phases in class order, and rows of phases over time.

import { h, s, say } from "./dom.js";

export const PHASES = ["clean", "armed", "infecting", "infected_running", "dormant"];

/** What stands left and right of a figure over time, in px: curves below phases have the same. */
export const GUTTER = 112;
export const EDGE = 18;

/** A phase with its colour; never the colour alone. */
export function chip(phase) {
  return h("span", { class: "chip" }, h("i", { class: `swatch p-${phase}`, "aria-hidden": "true" }), phase);
}

export function legend(phases = PHASES) {
  return h("ul", { class: "legend", "aria-label": "Phases" }, phases.map((phase) => h("li", {}, chip(phase))));
}

/**
 * One row per phase over time: boxes for what is drawn as bars, a thin line for what is drawn beside
 * them. A phase is told by its row; the colour only repeats it.
 */
export class PhaseRows {
  constructor(height = 16) {
    this.height = height;
    this.svg = s("svg", { class: "rows", preserveAspectRatio: "none", viewBox: `0 0 1000 ${height * PHASES.length}`, "aria-hidden": "true" });
    this.svg.style.setProperty("height", `${height * PHASES.length}px`);
    this.words = h("span", { class: "unseen" });
    this.area = h("div", { class: "area" }, this.svg);
    const names = PHASES.map((phase) => h("span", { "aria-hidden": "true" }, phase));
    this.element = h("div", { class: "phase-rows" }, h("div", { class: "names", vars: { "--row": `${height}px` } }, names), this.area, this.words);
  }

  /**
   * `range` [from, to] in seconds; `bars` lists of [from, to, phase], one list per half of a row;
   * `line` [from, to, phase] or null; `shaded` [from, to, class] behind all rows.
   */
  draw(range, { bars, line = [], shaded = [], words }) {
    const [from, to] = range;
    const x = (at) => Math.min(1000, Math.max(0, (1000 * (at - from)) / (to - from)));
    const { height } = this;
    const full = height * PHASES.length;
    const shapes = [];
    for (const [a, b, kind] of shaded) {
      if (x(b) > x(a)) shapes.push(s("rect", { class: kind, x: x(a), width: x(b) - x(a), y: 0, height: full }));
    }
    for (let i = 1; i < PHASES.length; i++) shapes.push(s("path", { class: "grid", d: `M0 ${i * height}H1000` }));
    bars.forEach((list, part) => {
      const tall = (height - 3) / bars.length;
      for (const [a, b, phase] of merged(list)) {
        if (x(b) <= x(a)) continue;
        const y = PHASES.indexOf(phase) * height + 1.5 + part * tall;
        shapes.push(s("rect", { class: `bar part-${part} p-${phase}`, x: x(a), width: x(b) - x(a), y: y + (part ? 0.5 : 0), height: tall - (bars.length > 1 ? 0.5 : 0) }));
      }
    });
    const path = steps(line, x, (phase) => (PHASES.indexOf(phase) + 0.5) * height);
    if (path) shapes.push(s("path", { class: "halo", d: path }), s("path", { class: "line", d: path }));
    this.svg.replaceChildren(...shapes);
    say(this.words, words);
  }
}

/** Boxes that touch and are of one phase as one. */
export function merged(list) {
  const out = [];
  for (const [from, to, phase] of list) {
    const last = out.at(-1);
    if (last && last[2] === phase && from - last[1] < 0.05) last[1] = to;
    else out.push([from, to, phase]);
  }
  return out;
}

function steps(list, x, y) {
  let path = "";
  let end = null;
  for (const [from, to, phase] of merged(list)) {
    if (x(to) <= x(from)) continue;
    path += end !== null && from - end < 0.05 ? `V${y(phase)}` : `M${x(from)} ${y(phase)}`;
    path += `H${x(to)}`;
    end = to;
  }
  return path;
}
