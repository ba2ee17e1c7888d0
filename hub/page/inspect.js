// Looking at one window of a figure: with the pointer, or with the arrow keys.

import { h, say } from "./dom.js";

/**
 * A figure whose windows can be looked at one by one. `windows()` gives their number, `share(i)`
 * where one lies from 0 to 1 (or null), `words(i)` what it says.
 */
export function inspectable(label, parts, { windows, share, words }) {
  const cursor = h("i", { class: "cursor", hidden: true });
  const over = h("div", { class: "over" }, cursor);
  const said = h("output", { class: "readout" });
  const figure = h("div", { class: "figure", tabindex: "0", role: "group", "aria-label": `${label}; arrow keys step through them` }, parts, over);
  let chosen = null;

  function choose(i) {
    chosen = i;
    const at = i === null ? null : share(i);
    cursor.hidden = at === null;
    if (at !== null) cursor.style.setProperty("left", `${100 * at}%`);
    say(said, i === null ? "" : words(i));
  }

  function nearest(x) {
    let best = null;
    for (let i = 0; i < windows(); i++) {
      const at = share(i);
      if (at !== null && (best === null || Math.abs(at - x) < Math.abs(share(best) - x))) best = i;
    }
    return best;
  }

  over.addEventListener("pointermove", (event) => {
    const box = over.getBoundingClientRect();
    choose(nearest((event.clientX - box.left) / box.width));
  });
  over.addEventListener("pointerleave", () => choose(null));
  figure.addEventListener("blur", () => choose(null));
  figure.addEventListener("keydown", (event) => {
    const n = windows();
    const here = chosen ?? n;
    const to = { ArrowLeft: here - 1, ArrowRight: chosen === null ? n - 1 : here + 1, Home: 0, End: n - 1 }[event.key];
    if (event.key === "Escape") choose(null);
    if (to === undefined || !n) return;
    event.preventDefault();
    choose(Math.min(n - 1, Math.max(0, to)));
  });
  return { element: h("div", { class: "inspectable" }, figure, said), forget: () => choose(null) };
}
