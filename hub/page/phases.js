// The phases in class order, and rows of phases over time.

import { h, s, say } from "./dom.js";
import { merged } from "./spans.js";

export const PHASES = ["clean", "armed", "infecting", "infected_running", "dormant"];

/** What stands left and right of a figure over time, in px: curves below phases have the same. */
export const GUTTER = 112;
export const EDGE = 18;
export const HATCH_PX = 5; // between the lines of silence, as in the style sheet

/** What else is drawn over time, for the legends of the scenes that draw it. */
export function marks(...entries) {
  return h("ul", { class: "legend", "aria-label": "Marks" }, entries.map(([swatch, words]) => h("li", {}, h("i", { class: `swatch ${swatch}`, "aria-hidden": "true" }), words)));
}

/** A phase with its colour; never the colour alone. */
export function chip(phase) {
  return h("span", { class: "chip" }, h("i", { class: `swatch p-${phase}`, "aria-hidden": "true" }), phase);
}

export function legend(phases = PHASES) {
  return h("ul", { class: "legend", "aria-label": "Phases" }, phases.map((phase) => h("li", {}, chip(phase))));
}

/**
 * One row per phase over time: bars, and a thin line below them for what is set beside. A phase is
 * told by its row; the colour only repeats it.
 */
export class PhaseRows {
  constructor(height = 20) {
    this.height = height;
    this.svg = s("svg", { class: "rows", preserveAspectRatio: "none", viewBox: `0 0 1000 ${height * PHASES.length}`, "aria-hidden": "true" });
    this.svg.style.setProperty("height", `${height * PHASES.length}px`);
    this.words = h("span", { class: "unseen" });
    this.area = h("div", { class: "area" }, this.svg);
    const names = PHASES.map((phase) => h("span", { "aria-hidden": "true" }, phase));
    this.element = h("div", { class: "phase-rows" }, h("div", { class: "names", vars: { "--row": `${height}px` } }, names), this.area, this.words);
  }

  /**
   * `range` [from, to] in seconds; `bars` lists of [from, to, phase], one list per part of a row;
   * `line` the same for the thin line below; `alarmed` and `silent` [from, to] behind all rows.
   */
  draw(range, { bars, line = [], alarmed = [], silent = [], words }) {
    const [from, to] = range;
    const x = (at) => Math.min(1000, Math.max(0, (1000 * (at - from)) / (to - from)));
    const { height } = this;
    const full = height * PHASES.length;
    const shapes = [];
    for (const [a, b] of merged(alarmed)) {
      if (x(b) > x(a)) shapes.push(s("rect", { class: "alarmed", x: x(a), width: x(b) - x(a), y: 0, height: full }));
    }
    const step = (1000 * HATCH_PX) / (this.area.clientWidth || 1000);
    for (const [a, b] of merged(silent)) {
      let lines = "";
      for (let at = x(a); at < x(b); at += step) lines += `M${at.toFixed(2)} 0V${full}`;
      if (lines) shapes.push(s("path", { class: "silent", d: lines }));
    }
    for (let i = 1; i < PHASES.length; i++) shapes.push(s("path", { class: "grid", d: `M0 ${i * height}H1000` }));
    const thin = line.length ? 3.5 : 0;
    bars.forEach((list, part) => {
      const tall = (height - 4 - thin) / bars.length;
      for (const [a, b, phase] of merged(list)) {
        if (x(b) <= x(a)) continue;
        const y = PHASES.indexOf(phase) * height + 2 + part * tall;
        shapes.push(s("rect", { class: `bar part-${part} p-${phase}`, x: x(a), width: x(b) - x(a), y: y + (part ? 1 : 0), height: tall - (bars.length > 1 ? 1 : 0) }));
      }
    });
    for (const [a, b, phase] of merged(line)) {
      if (x(b) > x(a)) shapes.push(s("rect", { class: "line", x: x(a), width: x(b) - x(a), y: (PHASES.indexOf(phase) + 1) * height - 4, height: 2 }));
    }
    this.svg.replaceChildren(...shapes);
    say(this.words, words);
  }
}
