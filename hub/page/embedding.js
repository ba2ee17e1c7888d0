// Windows along the principal axes of a checkpoint's training inputs: of three, the cloud can be
// turned; of two, it can be moved.

import { chooser, colour, count, disclosure, fixed, h, heading, say, table, unpublished } from "./dom.js";
import { chip, PHASES } from "./phases.js";

const TURN = Math.PI / 24; // by one press of an arrow key
const MOVE_PX = 40; // the same of a cloud that has two axes
const TURN_PX = 160; // of dragging for one radian
const NEAR_PX = 14;
const ROWS = 300;
const ALL = "";
const HOME = { yaw: -0.6, pitch: 0.35, zoom: 1, right: 0, down: 0 };
/** A phase has a shape too, within a circle of radius 1. */
const SHAPES = {
  clean: (at, r) => at.arc(0, 0, r * 0.85, 0, 7),
  armed: (at, r) => polygon(at, r * 1.15, 3, -Math.PI / 2),
  infecting: (at, r) => polygon(at, r * 1.1, 4, Math.PI / 4),
  infected_running: (at, r) => polygon(at, r * 1.2, 4, 0),
  dormant: (at, r) => polygon(at, r * 1.15, 3, Math.PI / 2),
};

function polygon(at, r, corners, turned) {
  for (let i = 0; i < corners; i++) {
    const angle = turned + (2 * Math.PI * i) / corners;
    at[i ? "lineTo" : "moveTo"](r * Math.cos(angle), r * Math.sin(angle));
  }
  at.closePath();
}

function named(button, words) {
  button.setAttribute("aria-label", words);
  button.title = words;
  return button;
}

export const scene = {
  id: "embedding",
  title: "Embedding",
  types: ["embedding"],

  mount(panel, store, dirty) {
    Object.assign(this, { store, dirty, view: { ...HOME }, hidden: new Set(), chosen: null, pinned: false, places: [] });
    this.none = unpublished("Windows along a checkpoint's principal axes are", "embedding");
    this.profile = chooser("Profile", dirty);
    this.by = chooser("Coloured by", dirty);
    this.by.options([["phase", "actual phase"], ["predicted", "predicted phase"]]);
    this.wrong = h("input", { type: "checkbox", on: { change: dirty } });
    this.canvas = h("canvas", {
      tabindex: "0", role: "application", "aria-roledescription": "cloud of windows", class: "cloud",
      on: {
        pointerdown: (event) => this.grab(event), pointermove: (event) => this.drag(event), pointerup: (event) => this.release(event),
        pointercancel: () => { this.held = null; }, pointerleave: () => this.pinned || this.choose(null), keydown: (event) => this.key(event),
      },
    });
    const button = (sign, does) => h("button", { type: "button", class: "quiet", on: { click: does } }, h("span", { "aria-hidden": "true" }, sign));
    this.steps = [["left", "←", -1, 0], ["right", "→", 1, 0], ["up", "↑", 0, -1], ["down", "↓", 0, 1]].map(([way, sign, x, y]) => [way, button(sign, () => this.step(x, y))]);
    this.zooms = [["Nearer", "+", 1.2], ["Farther", "−", 1 / 1.2]].map(([words, sign, by]) => named(button(sign, () => this.zoom(by)), words));
    this.buttons = h("div", { class: "buttons", role: "group", "aria-label": "View of the cloud" },
      this.steps.map(([, each]) => each), this.zooms,
      h("button", { type: "button", class: "quiet", on: { click: () => { this.view = { ...HOME }; this.paint(); } } }, "Reset"));
    this.axes = h("p", { class: "soft sub" });
    this.phases = h("fieldset", { class: "phases" });
    this.boxes = new Map(PHASES.map((phase) => {
      const n = h("span", { class: "soft" });
      const box = h("input", { type: "checkbox", checked: true, on: { change: () => { this.hidden[box.checked ? "delete" : "add"](phase); dirty(); } } });
      const row = h("label", { class: "pick" }, box, h("i", { class: `shape s-${phase}`, "aria-hidden": "true" }), phase, n);
      return [phase, { row, n }];
    }));
    this.phases.append(h("legend", {}, "Phases shown"), ...[...this.boxes.values()].map(({ row }) => row));
    this.said = h("output", { class: "window-card" });
    this.list = disclosure("Windows as a table", () => this.figures());
    this.body = h("div", { class: "stack" },
      h("div", { class: "controls" }, this.profile.element, this.by.element, h("label", { class: "pick" }, this.wrong, "only windows predicted wrongly")),
      h("div", { class: "turnable" },
        h("div", { class: "stage" }, this.canvas, this.buttons, this.axes),
        h("div", { class: "beside" }, this.phases, this.said)),
      this.list.element);
    this.head = heading("Embedding", "Each mark is a window, placed along the main axes of what the model was trained on. Windows that look alike to the model lie close together.");
    panel.append(this.head.element, this.none, this.body);
    new ResizeObserver(() => this.paint()).observe(this.canvas);
  },

  update() {
    const all = [...this.store.points.values()];
    this.none.hidden = all.length > 0;
    this.body.hidden = all.length === 0;
    if (!all.length) return;
    this.profile.options([[ALL, "all"], ...[...new Set(all.map((event) => event.cluster))].sort().map((name) => [name, name])]);
    const by = this.by.value;
    const within = all.filter((event) => [ALL, event.cluster].includes(this.profile.value) && !(this.wrong.checked && event.phase === event.predicted));
    for (const [phase, { n }] of this.boxes) say(n, count(within.filter((event) => event[by] === phase).length));
    this.points = within.filter((event) => !this.hidden.has(event[by]));
    const without = all.filter((event) => event.z === null || event.z === undefined).length;
    this.flat = without > 0;
    const verb = this.flat ? "Move" : "Turn";
    for (const [way, button] of this.steps) named(button, `${verb} ${way}`);
    const models = [...new Set(all.map((event) => event.model))].join(", ");
    const axes = !this.flat ? "Three axes: drag or use the arrow keys to turn the cloud." : without === all.length ? "Two axes: the third is left out, because the checkpoint has two." : `Two axes: the third is left out, because ${count(without)} of ${count(all.length)} windows have none.`;
    const move = this.flat ? " Drag or use the arrow keys to move the cloud." : "";
    say(this.axes, `${models} · ${count(this.points.length)} of ${count(all.length)} windows. ${axes}${move}`);
    this.frame(all);
    const label = `${count(this.points.length)} windows: ${PHASES.map((phase) => `${phase} ${count(this.points.filter((event) => event[by] === phase).length)}`).join(", ")}. Arrow keys ${verb.toLowerCase()} it; n and p step through the windows.`;
    this.canvas.setAttribute("aria-label", label);
    this.head.from(all);
    this.list.refresh();
    if (this.chosen && !this.points.includes(this.chosen)) this.choose(null);
    this.paint();
    if (!this.chosen) this.choose(null);
  },

  /** Where the cloud's middle is and how far it reaches: of all windows, so that a filter moves nothing. */
  frame(all) {
    const axis = (name) => all.map((event) => event[name] ?? 0).sort((a, b) => a - b);
    const ends = ["x", "y", "z"].map((name) => { const sorted = axis(name); return [sorted[0], sorted.at(-1)]; });
    this.middle = ends.map(([low, high]) => (low + high) / 2);
    const far = all.map((event) => Math.hypot(...["x", "y", "z"].map((name, i) => (event[name] ?? 0) - this.middle[i]))).sort((a, b) => a - b);
    this.reach = far[Math.floor(0.99 * (far.length - 1))] || 1;
  },

  /** Where a window is on the canvas: x, y in px and depth from -1 (far) to 1. */
  place(point, width, height) {
    const { yaw, pitch, zoom, right, down } = this.view;
    const [x, y, z] = point.map((value, i) => (value - this.middle[i]) / this.reach);
    const scale = 0.47 * Math.min(width, height) * zoom;
    if (this.flat) {
      return [width / 2 + right + scale * x, height / 2 + down - scale * y, 0];
    }
    const across = Math.cos(yaw) * x + Math.sin(yaw) * z;
    const into = -Math.sin(yaw) * x + Math.cos(yaw) * z;
    const up = Math.cos(pitch) * y - Math.sin(pitch) * into;
    return [width / 2 + scale * across, height / 2 - scale * up, Math.sin(pitch) * y + Math.cos(pitch) * into];
  },

  paint() {
    const { canvas } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !this.points) return;
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const at = canvas.getContext("2d");
    at.scale(ratio, ratio);
    const colours = Object.fromEntries([...PHASES, "paper", "soft", "rule", "ink", "base"].map((name) => [name, colour(name)]));
    this.drawAxes(at, width, height, colours);
    this.places = this.points.map((event) => [event, ...this.place([event.x, event.y, event.z ?? 0], width, height)]);
    this.places.sort((a, b) => a[3] - b[3]);
    const by = this.by.value;
    for (const [event, x, y, depth] of this.places) {
      const radius = 4.4 + (this.flat ? 0 : 1.1 * depth);
      at.setTransform(ratio, 0, 0, ratio, x * ratio, y * ratio);
      at.beginPath();
      SHAPES[event[by]](at, Math.max(2.5, radius));
      at.globalAlpha = this.flat ? 0.85 : 0.72 + 0.28 * Math.max(-1, Math.min(1, depth));
      at.fillStyle = colours[event[by]];
      at.fill();
      at.globalAlpha = 1;
      at.lineWidth = event[by] === "clean" ? 0.9 : 0.6;
      at.strokeStyle = event[by] === "clean" ? colours.base : colours.paper;
      at.stroke();
    }
    at.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.nameAxes(at, width, height, colours);
    const chosen = this.places.find(([event]) => event === this.chosen);
    if (chosen) {
      at.setTransform(ratio, 0, 0, ratio, chosen[1] * ratio, chosen[2] * ratio);
      at.beginPath();
      at.arc(0, 0, 10, 0, 7);
      at.lineWidth = 2;
      at.strokeStyle = colours.ink;
      at.stroke();
    }
  },

  drawAxes(at, width, height, colours) {
    at.strokeStyle = colours.rule;
    at.lineWidth = 1;
    for (const [from, to] of this.axisEnds(width, height)) {
      at.beginPath();
      at.moveTo(from[0], from[1]);
      at.lineTo(to[0], to[1]);
      at.stroke();
    }
  },

  nameAxes(at, width, height, colours) {
    at.font = "11px system-ui, sans-serif";
    at.textAlign = "center";
    at.textBaseline = "middle";
    at.lineWidth = 4;
    at.strokeStyle = colours.paper;
    at.fillStyle = colours.soft;
    this.axisEnds(width, height).forEach(([, [x, y]], i) => {
      const place = [Math.min(width - 22, Math.max(22, x)), Math.min(height - 9, Math.max(9, y + (y < height / 2 ? -9 : 9)))];
      at.strokeText(`axis ${i + 1}`, ...place);
      at.fillText(`axis ${i + 1}`, ...place);
    });
  },

  axisEnds(width, height) {
    return (this.flat ? [0, 1] : [0, 1, 2]).map((i) =>
      [-1, 1].map((sign) => this.place(this.middle.map((value, j) => value + (i === j ? sign * this.reach : 0)), width, height)));
  },

  /** Turn the cloud, or move it where there is nothing to turn; by px on the screen. */
  drift(x, y) {
    const { view } = this;
    if (this.flat) {
      view.right += x;
      view.down += y;
    } else {
      view.yaw += x / TURN_PX;
      view.pitch = Math.max(-Math.PI / 2, Math.min(Math.PI / 2, view.pitch + y / TURN_PX));
    }
    this.paint();
  },

  step(x, y) {
    const px = this.flat ? MOVE_PX : TURN * TURN_PX;
    this.drift(x * px, y * px);
  },

  /** Nearer or farther, about the middle of the canvas. */
  zoom(by) {
    const { view } = this;
    const zoom = Math.max(0.5, Math.min(6, view.zoom * by));
    view.right *= zoom / view.zoom;
    view.down *= zoom / view.zoom;
    view.zoom = zoom;
    this.paint();
  },

  key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const zoom = { "+": 1.2, "-": 1 / 1.2 }[event.key];
    const step = { n: 1, p: -1 }[event.key];
    if (event.key === "Escape") { this.pinned = false; this.choose(null); }
    if (event.ctrlKey || event.metaKey || event.altKey || !(steps[event.key] || zoom || step)) return;
    event.preventDefault();
    if (step) {
      const here = this.points.indexOf(this.chosen);
      this.pinned = true;
      this.choose(this.points.at(here < 0 ? (step > 0 ? 0 : -1) : (here + step) % this.points.length) ?? null);
    } else if (zoom) this.zoom(zoom);
    else this.step(...steps[event.key]);
  },

  grab(event) {
    this.held = [event.clientX, event.clientY, false];
    this.canvas.setPointerCapture(event.pointerId);
  },

  drag(event) {
    if (this.held) {
      const [x, y, moved] = this.held;
      const far = Math.hypot(event.clientX - x, event.clientY - y);
      if (far < 3 && !moved) return;
      this.held = [event.clientX, event.clientY, true];
      this.drift(event.clientX - x, event.clientY - y);
      return;
    }
    if (!this.pinned) this.choose(this.near(event));
  },

  /** A press that moved nothing is a click: it keeps the window that is there. */
  release(event) {
    const clicked = this.held && !this.held[2];
    this.held = null;
    if (!clicked) return;
    const point = this.near(event);
    this.pinned = point !== null;
    this.choose(point);
  },

  near(event) {
    const box = this.canvas.getBoundingClientRect();
    let best = null;
    let least = NEAR_PX;
    for (const [each, x, y] of this.places) {
      const far = Math.hypot(event.clientX - box.left - x, event.clientY - box.top - y);
      if (far <= least) [best, least] = [each, far];
    }
    return best;
  },

  choose(event) {
    if (event === this.chosen && this.said.firstChild) return;
    this.chosen = event;
    if (!event) this.pinned = false;
    this.said.replaceChildren(...(event ? card(event) : [h("p", { class: "soft" }, "Point at a mark, or focus the cloud and press n, to see a window. Click to keep it.")]));
    this.paint();
  },

  figures() {
    const { points } = this;
    const axes = this.flat ? ["x", "y"] : ["x", "y", "z"];
    const shown = points.slice(0, ROWS);
    const caption = shown.length < points.length ? `The first ${ROWS} of ${count(points.length)} windows that are shown` : "The windows that are shown";
    return table(caption,
      [{ name: "episode" }, { name: "window", number: true }, { name: "profile" }, { name: "actual" }, { name: "predicted" }, ...axes.map((_, i) => ({ name: `axis ${i + 1}`, number: true }))],
      shown.map((event) => [event.episode_id, String(event.window), event.cluster, event.phase, event.predicted === event.phase ? event.predicted : h("b", {}, `${event.predicted} ≠`), ...axes.map((axis) => fixed(event[axis], 2))]));
  },
};

function card(event) {
  const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
  return [h("dl", { class: "facts" },
    fact("Episode", h("code", {}, event.episode_id)), fact("Window", String(event.window)), fact("Profile", event.cluster),
    fact("Actual", chip(event.phase)), fact("Predicted", [chip(event.predicted), event.predicted === event.phase ? "" : h("b", { class: "warn" }, " differs")]),
    fact("Place", [event.x, event.y, event.z].filter((value) => value !== null && value !== undefined).map((value) => fixed(value, 2)).join(", ")))];
}
