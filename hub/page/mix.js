// How many windows of the corpus, and of each part of it, are in each phase.

import { ago, count, h, heading, percent, replace, table, unpublished } from "./dom.js";
import { chip, legend, PHASES } from "./phases.js";

export const scene = {
  id: "mix",
  title: "Phase mix",
  types: ["phase"],

  mount(panel, store, dirty) {
    this.store = store;
    this.none = unpublished("The number of windows in each phase is", "phases");
    this.body = h("div", { class: "stack" });
    this.head = heading("Phase mix", "How many windows of the store's usable episodes are in each phase. Models know a phase less well if it is rare here.");
    panel.append(this.head.element, this.none, this.body);
    new ResizeObserver(() => dirty()).observe(panel);
  },

  update() {
    const events = [...this.store.phases.values()];
    const mixes = events.filter((event) => event.mix).sort((a, b) => total(b) - total(a) || a.scope.localeCompare(b.scope));
    const hosts = events.filter((event) => event.phase).sort((a, b) => a.scope.localeCompare(b.scope));
    this.none.hidden = events.length > 0;
    this.head.from(mixes, hosts);
    const width = this.body.clientWidth;
    replace(this.body,
      ...(mixes.length ? [legend(), h("div", { class: "mixes" }, mixes.map((event) => bar(event, width))), figures(mixes)] : []),
      ...(hosts.length ? [h("h3", {}, "Hosts"), h("ul", { class: "hosts" }, hosts.map((event) => h("li", {}, h("b", {}, event.scope), chip(event.phase), h("span", { class: "soft" }, "reported ", ago(event.at)))))] : []));
  },
};

const total = (event) => PHASES.reduce((sum, phase) => sum + (event.mix[phase] ?? 0), 0);

const LETTER_PX = 6.6;

function bar(event, width) {
  const all = total(event);
  const parts = PHASES.filter((phase) => event.mix[phase]).map((phase) => {
    const share = event.mix[phase] / all;
    const fits = (letters) => width * share > LETTER_PX * letters; // the legend has the names of narrow parts
    return h("div", { class: "part", vars: { "--share": String(event.mix[phase]) } },
      h("i", { class: `p-${phase}` }), fits(4) && h("span", {}, fits(phase.length + 5) && [h("span", { class: "name" }, phase), " "], percent(share)));
  });
  return h("div", { class: "mix" },
    h("p", {}, h("b", {}, event.scope), h("span", { class: "soft" }, `${count(all)} windows`)),
    h("div", { class: "parts", role: "img", "aria-label": `${event.scope}: ${PHASES.map((phase) => `${phase} ${count(event.mix[phase] ?? 0)}`).join(", ")}` }, all ? parts : h("span", { class: "soft sub" }, "no windows")));
}

function figures(mixes) {
  return table("Windows in each phase, with the share of the row",
    [{ name: "part" }, ...PHASES.map((name) => ({ name, number: true })), { name: "all", number: true }],
    mixes.map((event) => [event.scope, ...PHASES.map((phase) => {
      const n = event.mix[phase];
      return n === undefined ? "–" : [count(n), " ", h("span", { class: "soft" }, total(event) ? percent(n / total(event), 1) : "")];
    }), count(total(event))]));
}
