// Elements, words and figures. Nothing here knows an event. Styles are set through the CSSOM only,
// and text is only ever text: the page works under a policy that allows no inline style and no markup.

const SVG = "http://www.w3.org/2000/svg";

function build(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [kind, does] of Object.entries(value)) element.addEventListener(kind, does);
    else if (name === "vars") for (const [key, set] of Object.entries(value)) element.style.setProperty(key, set);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An HTML element: attributes, `on` (listeners), `vars` (custom properties), then children. */
export function h(tag, properties = {}, ...children) {
  return build(document.createElement(tag), properties, children);
}

/** An SVG element. */
export function s(tag, properties = {}, ...children) {
  return build(document.createElementNS(SVG, tag), properties, children);
}

/** Write text only where it differs, so that nothing is read out or selected anew. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A table with a caption; cells are text or nodes, and `number` columns are set to the right. */
export function table(caption, columns, rows, properties = {}) {
  const head = columns.map((column) => h("th", { scope: "col", class: column.number ? "n" : null }, column.name));
  const body = rows.map((row) =>
    h("tr", {}, row.map((cell, i) =>
      i === 0 ? h("th", { scope: "row", class: columns[0].number ? "n" : null }, cell ?? "–")
        : h("td", { class: columns[i].number ? "n" : null }, cell ?? "–"))));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", properties, h("caption", {}, caption), h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)));
}

/** Other contents for an element; a table in it that is scrolled or has the focus stays so. */
export function replace(element, ...children) {
  const boxes = () => [...element.querySelectorAll(".scroll")];
  const before = boxes().map((box) => [box.scrollTop, box === document.activeElement]);
  element.replaceChildren(...children.flat().filter(Boolean));
  boxes().forEach((box, i) => {
    const [top, focused] = before[i] ?? [0, false];
    box.scrollTop = top;
    if (focused) box.focus({ preventScroll: true });
  });
}

/** A disclosure whose contents are made when it is opened, and again by `refresh` while it is open. */
export function disclosure(summary, make) {
  const words = h("summary", {}, summary);
  const element = h("details", {}, words);
  const refresh = () => {
    if (element.open) replace(element, words, make());
  };
  element.addEventListener("toggle", refresh);
  return { element, refresh, words };
}

/** A scene's title, what it shows, and where its data come from. */
export function heading(title, about) {
  const from = h("div", { class: "from" });
  return {
    element: h("header", {}, h("h2", {}, title), h("p", { class: "about" }, about), from),
    /** Say the provenance of these events; each list gets a line. */
    from: (...lists) => from.replaceChildren(...lists.filter((events) => events.length).map(provenance)),
  };
}

/** What a scene shows before anything has come. */
export function empty(what, command) {
  return h("div", { class: "empty" },
    h("p", { class: "lead" }, "Nothing received yet."),
    h("p", {}, what, " ", h("code", {}, command), "."));
}

/** Shown until a producer has published. */
export function unpublished(what, producer) {
  const element = empty(`${what} published by`, `phasewatch produce ${producer}`);
  element.append(h("p", {}, "To fill every scene but Live: ", h("code", {}, "phasewatch produce all"), "."));
  return element;
}

let fields = 0;

/** A control beside its label. */
export function field(label, control) {
  control.id = `field-${++fields}`;
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control);
}

/** A select with its label; `change` gets the chosen value. */
export function chooser(label, change) {
  const select = h("select", { on: { change: () => change(select.value) } });
  const element = field(label, select);
  let known = "";
  return {
    element,
    select,
    get value() { return select.value; },
    /** Options as [value, words]; the choice is kept where it is still there. */
    options(entries) {
      const now = JSON.stringify(entries);
      if (now === known) return;
      known = now;
      const chosen = select.value;
      select.replaceChildren(...entries.map(([value, words]) => h("option", { value }, words)));
      if (entries.some(([value]) => value === chosen)) select.value = chosen;
    },
  };
}

/** A colour of the style sheet as the canvas needs it: resolved for the theme that is on. */
export function colour(name) {
  if (!probe.isConnected) document.body.append(probe);
  probe.style.setProperty("color", `var(--${name})`);
  return getComputedStyle(probe).color;
}
const probe = h("span", { class: "probe", "aria-hidden": "true" });

/* ---- figures ---- */

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

export const count = (value) => whole.format(value);
export const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)}%`;
export const fixed = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));
export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;
/** Three significant digits, with k, M, B. */
export const compact = (value) => (value === null || value === undefined ? "–" : Math.abs(value) < 1000 ? String(Number(value.toPrecision(3))) : short.format(value));

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const step = value >= 1e9 ? [1e9, "GB"] : value >= 1e6 ? [1e6, "MB"] : value >= 1e3 ? [1e3, "kB"] : [1, "B"];
  return `${Number((value / step[0]).toPrecision(3))} ${step[1]}`;
}

export function milliseconds(value) {
  if (value === null || value === undefined) return "not measured";
  return value >= 1000 ? `${Number((value / 1000).toPrecision(3))} s` : `${Number(value.toPrecision(value < 1 ? 2 : 3))} ms`;
}

/* ---- time: Unix seconds in, words out ---- */

let skew = 0;

/** Take the hub's clock: ages are right though this machine's clock is not. */
export function setClock(hub) {
  skew = hub - Date.now() / 1000;
}

export const now = () => Date.now() / 1000 + skew;

const clockFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const minuteFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const dayFormat = new Intl.DateTimeFormat("en-CA", { year: "numeric", month: "2-digit", day: "2-digit" });

export const clock = (seconds) => clockFormat.format(seconds * 1000);
export const minute = (seconds) => minuteFormat.format(seconds * 1000);
export const day = (seconds) => dayFormat.format(seconds * 1000);
/** The time of day; with the date if it is not today's. */
export const when = (seconds) => (day(seconds) === day(now()) ? clock(seconds) : `${day(seconds)} ${clock(seconds)}`);

export function duration(seconds) {
  const n = Math.max(0, Math.round(seconds));
  if (n < 60) return `${n} s`;
  if (n < 3600) return n % 60 && n < 600 ? `${Math.floor(n / 60)} min ${n % 60} s` : `${Math.floor(n / 60)} min`;
  if (n < 48 * 3600) return `${Math.floor(n / 3600)} h${Math.floor((n % 3600) / 60) && n < 12 * 3600 ? ` ${Math.floor((n % 3600) / 60)} min` : ""}`;
  return `${Math.floor(n / 86400)} days`;
}

const old = (seconds) => (seconds < 1 ? "now" : `${duration(seconds)} ago`);

/** How long ago `seconds` was; `tick` keeps it true. */
export function ago(seconds) {
  const element = h("time", { class: "ago", datetime: new Date(seconds * 1000).toISOString(), title: `${day(seconds)} ${clock(seconds)}` }, old(now() - seconds));
  element.at = seconds;
  return element;
}

/** For how long something has stood since `seconds`; `tick` keeps it true. */
export function since(seconds) {
  const element = h("time", { class: "ago", datetime: new Date(seconds * 1000).toISOString() }, duration(now() - seconds));
  element.at = seconds;
  element.bare = true;
  return element;
}

/** Bring every age within `root` up to date. */
export function tick(root) {
  for (const element of root.querySelectorAll("time.ago")) {
    if (element.at !== undefined) say(element, (element.bare ? duration : old)(now() - element.at));
  }
}

const ORIGINS = 8; // that are listed

/**
 * Where data come from and how old they are. `events` may be many: origins are listed, what they
 * have in common once, and the oldest data are said.
 */
export function provenance(events) {
  const { before, each, after } = inCommon([...new Set(events.map((event) => event.origin))]);
  const made = events.map((event) => event.data_at).filter((at) => at !== null && at !== undefined);
  const line = h("p", { class: "provenance" });
  const more = each.length > ORIGINS ? ` and ${each.length - ORIGINS} more` : "";
  const listed = each.slice(0, ORIGINS).join("; ") + more;
  line.append("From ", h("span", { class: "origin" }, [before, listed, after].filter(Boolean).join(" ")), " · ");
  if (made.length) line.append(made.length > 1 ? "the oldest data made " : "data made ", ago(made.reduce((a, b) => Math.min(a, b))));
  else line.append("age of the data unknown");
  line.append(" · published ", ago(events.reduce((last, { at }) => Math.max(last, at), 0)));
  return line;
}

/** Texts as the words that all begin with, what is different, and the words that all end with. */
function inCommon(texts) {
  if (texts.length < 2) return { before: "", each: texts, after: "" };
  const words = texts.map((text) => text.split(" "));
  const shortest = Math.min(...words.map((each) => each.length)) - 1; // something is left of each
  const same = (at) => words.every((each) => each.at(at) === words[0].at(at));
  let begin = 0;
  while (begin < shortest && same(begin)) begin++;
  let end = 0;
  while (begin + end < shortest && same(-1 - end)) end++;
  return {
    before: words[0].slice(0, begin).join(" "),
    each: words.map((each) => each.slice(begin, each.length - end).join(" ")),
    after: end ? words[0].slice(-end).join(" ") : "",
  };
}
