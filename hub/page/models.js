// Macro F1 of each model on the test side of each recipe, with intervals, beside the baselines.

import { disclosure, fixed, h, heading, percent, table, unpublished } from "./dom.js";

/** What a baseline knows: none of what the guest does. */
const BASELINES = {
  position_only: "sees only where a window lies in its episode",
  missingness_only: "sees only the coverage of each source, so which collectors ran",
  prior: "guesses each phase as often as it occurs in training",
  uniform: "guesses every phase equally often",
};

export const scene = {
  id: "models",
  title: "Models",
  types: ["model_metric"],

  mount(panel, store) {
    this.store = store;
    this.none = unpublished("Figures of the models are", "metrics");
    this.board = h("div", { class: "board" });
    this.key = h("ul", { class: "legend", "aria-label": "Marks" });
    this.list = disclosure("All figures as a table", () => figures([...this.store.metrics.values()]));
    this.means = h("section");
    this.body = h("div", { class: "stack" }, this.key, this.board, this.means, this.list.element);
    this.head = heading("Models", "Macro F1 on test episodes that a model never saw, on one axis from 0 to 1. A model that does not beat the strongest baseline may have learned the schedule, or which collectors ran.");
    panel.append(this.head.element, this.none, this.body);
  },

  update() {
    const events = [...this.store.metrics.values()];
    this.none.hidden = events.length > 0;
    this.body.hidden = events.length === 0;
    if (!events.length) return;
    const levels = [...new Set(events.map((event) => percent(event.level)))].join(" or ");
    this.key.replaceChildren(
      mark("realistic", "realistic: what a guest sees of itself"), mark("oracle", "oracle: also the host's view"), mark("baseline", "baseline"),
      h("li", {}, h("i", { class: "swatch whisker", "aria-hidden": "true" }), `${levels} interval`),
      h("li", {}, h("i", { class: "swatch dashed", "aria-hidden": "true" }), "strongest baseline"));
    const recipes = [...new Set(events.map((event) => event.recipe))];
    const order = best(events);
    this.board.replaceChildren(...recipes.map((recipe) => panelOf(recipe, events.filter((event) => event.recipe === recipe), order)));
    const named = new Set(events.filter((event) => event.baseline).map((event) => event.model));
    this.means.hidden = named.size === 0;
    this.means.replaceChildren(
      h("p", { class: "soft sub" }, "Baselines do not see what the guest does. If a baseline differs between the modes, a mark next to it shows the mode."),
      h("ul", { class: "plain" }, Object.entries(BASELINES).filter(([name]) => named.has(name)).map(([name, does]) => h("li", {}, h("b", {}, name), h("span", { class: "soft" }, does)))));
    this.head.from(events);
    this.list.refresh();
  },
};

const kind = (event) => (event.baseline ? "baseline" : event.mode);
/** A baseline has a mode where it makes a difference: which values there are. */
const words = (event) => (event.baseline && event.mode ? `baseline, ${event.mode}` : kind(event));
const mark = (name, words) => h("li", {}, h("i", { class: `mark ${name}`, "aria-hidden": "true" }), words);

/** Models by their best figure, so that all recipes list them in one order. */
function best(events) {
  const top = new Map();
  for (const event of events) top.set(event.model, Math.max(top.get(event.model) ?? -1, event.value ?? -1));
  return [...top].sort((a, b) => b[1] - a[1]).map(([model]) => model);
}

function panelOf(recipe, events, order) {
  const strongest = Math.max(...events.filter((event) => event.baseline && event.value !== null).map((event) => event.value), -1);
  const rows = order.map((model) => events.filter((event) => event.model === model).sort((a, b) => kind(b).localeCompare(kind(a)))).filter((each) => each.length);
  const row = (each) => h("tr", { class: each[0].baseline ? "base" : null },
    h("th", { scope: "row" }, breakable(each[0].model)),
    h("td", { class: "plot", vars: strongest < 0 ? {} : { "--reference": percentOf(strongest) } }, each.map(dot)),
    h("td", { class: "values" }, each.map(value)));
  const models = rows.filter((each) => !each[0].baseline);
  const baselines = rows.filter((each) => each[0].baseline);
  return h("section", { class: "recipe" },
    h("h3", {}, recipe),
    h("table", { class: strongest < 0 ? "dots" : "dots referenced" },
      h("caption", { class: "unseen" }, `Macro F1 by model, recipe ${recipe}`),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, h("span", { class: "unseen" }, "model")),
        h("th", { scope: "col", class: "scale" }, h("span", { class: "unseen" }, "macro F1 from 0 to 1"), [0, 0.25, 0.5, 0.75, 1].map((at) => h("i", { "aria-hidden": "true" }, String(at)))),
        h("th", { scope: "col" }, "macro F1"))),
      h("tbody", {}, models.map(row)),
      baselines.length ? h("tbody", {}, baselines.map(row)) : null));
}

/** A name that may be broken after its underscores, and nowhere else. */
const breakable = (name) => name.split(/(?<=_)/).flatMap((part, i) => (i ? [h("wbr"), part] : [part]));
const percentOf = (value) => `${100 * value}%`;

function dot(event) {
  const ranged = event.low !== null && event.low !== undefined && event.high !== null && event.high !== undefined;
  return h("div", { class: "track", "aria-hidden": "true" },
    ranged && h("i", { class: `range ${kind(event)}`, vars: { left: percentOf(event.low), width: percentOf(event.high - event.low) } }),
    event.value !== null && h("i", { class: `mark ${kind(event)}`, vars: { left: percentOf(event.value) } }));
}

function value(event) {
  const interval = event.low === null || event.low === undefined ? "" : `${fixed(event.low, 2)} to ${fixed(event.high, 2)}`;
  return h("div", { class: "track" }, h("i", { class: `mark ${kind(event)}`, "aria-hidden": "true" }),
    event.baseline && event.mode && h("i", { class: `mark ${event.mode}`, "aria-hidden": "true" }), h("span", { class: "unseen" }, `${words(event)} `),
    event.value === null ? h("span", { class: "soft", title: "could not be computed" }, "none") : [h("b", {}, fixed(event.value)), h("small", {}, interval)]);
}

function figures(events) {
  return table("Macro F1 on test, with intervals",
    [{ name: "model" }, { name: "mode" }, { name: "recipe" }, { name: "macro F1", number: true }, { name: "from", number: true }, { name: "to", number: true }, { name: "interval", number: true }],
    events.sort((a, b) => a.recipe.localeCompare(b.recipe) || (b.value ?? -1) - (a.value ?? -1))
      .map((event) => [event.model, words(event), event.recipe, fixed(event.value), fixed(event.low), fixed(event.high), percent(event.level)]));
}
