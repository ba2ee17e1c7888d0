// What was received, by type, in bounded memory. An event replaces the one before it of the same
// subject, as in the hub; nothing is made up, filled in or carried over.

import { standing } from "./spans.js";

export const LIVE_WINDOWS = 240; // per lane: twenty minutes
const LANES = 100;
const ALARMS = 40; // per lane
const EPISODES = 200;
const WINDOWS = 4000; // of one episode
const POINTS = 20000;
const OTHERS = 2000;

/** A map that forgets what was set longest ago. */
class Bounded extends Map {
  constructor(limit) {
    super();
    this.limit = limit;
  }

  set(key, value) {
    this.delete(key);
    if (this.size >= this.limit) this.delete(this.keys().next().value);
    return super.set(key, value);
  }
}

/** By what a lane is known: a replay of a host is never on the lane of the host itself. */
const keyOf = ({ source, host }) => `${source} ${host}`;

/** One host, live or in a replay: its last windows in order of time, and its alarms. */
export class Lane {
  constructor({ host, source }) {
    this.key = keyOf({ host, source });
    this.host = host;
    this.source = source;
    this.name = source === "replay" ? `${host} (replay)` : host;
    this.windows = [];
    this.alarms = new Bounded(ALARMS);
    this.last = null;
    this.heard = 0; // when the last window came, by the hub's clock: a source's own may be wrong
    this.changed = true;
    this.known = new Map();
  }

  /** Take a window; gives what changed for a listener: "raised", "cleared", "silent", "back" or null. */
  add(event, heard) {
    const before = this.last;
    const key = `${event.session} ${event.window} ${event.phase === null ? "silent" : ""}`;
    if (before && this.elsewhere(event, before)) {
      this.windows = [];
      this.known.clear();
    }
    if (this.known.has(key)) {
      this.windows[this.windows.indexOf(this.known.get(key))] = event;
    } else {
      let at = this.windows.length;
      while (at > 0 && this.windows[at - 1].end > event.end) at--;
      this.windows.splice(at, 0, event);
    }
    this.known.set(key, event);
    while (this.windows.length > LIVE_WINDOWS) {
      const gone = this.windows.shift();
      this.known.delete(`${gone.session} ${gone.window} ${gone.phase === null ? "silent" : ""}`);
    }
    this.changed = true;
    const news = this.alarm(event);
    this.last = event; // the hub keeps the order, whatever the clocks of sources say
    this.heard = heard;
    if (news) return news;
    if (!before) return event.silent?.length ? "silent" : null;
    const quiet = (one) => (one.silent ?? []).join();
    return quiet(before) === quiet(event) ? null : quiet(event) ? "silent" : "back";
  }

  /** Whether a window cannot stand on the same axis as the one before: time ran anew. */
  elsewhere(event, before) {
    return event.session !== before.session && event.start < before.start;
  }

  alarm(event) {
    if (event.phase !== null) {
      for (const each of this.alarms.values()) { // silence ends with the next window, which may have begun before it
        const stands = event.alarm !== "cleared" && each.id === event.alarm_id;
        if (each.first.phase === null && each.until === null && !stands) each.until = Math.max(each.last, event.start);
      }
    }
    if (event.alarm === "none" || !event.alarm_id) return null;
    const known = this.alarms.get(event.alarm_id);
    const alarm = known ?? { id: event.alarm_id, host: event.host, from: event.end, seen: event.alarm === "raised", first: event, last: event.end, until: null, peak: null };
    if (!known) this.alarms.set(alarm.id, alarm);
    if (event.alarm === "raised") Object.assign(alarm, { from: event.end, seen: true, first: event });
    alarm.last = event.end;
    if (event.alarm === "cleared") alarm.until ??= event.end;
    if (event.score !== null && alarm.first.phase !== null) alarm.peak = Math.max(alarm.peak ?? 0, event.score);
    if (event.alarm === "raised" && !(known?.seen)) return "raised";
    return event.alarm === "cleared" ? "cleared" : null;
  }
}

export class Store {
  constructor() {
    this.lanes = new Bounded(LANES);
    this.phases = new Bounded(OTHERS);
    this.profiles = new Bounded(OTHERS);
    this.episodes = new Bounded(EPISODES);
    this.metrics = new Bounded(OTHERS);
    this.points = new Bounded(POINTS);
    this.perf = new Bounded(OTHERS);
    this.answers = new Bounded(OTHERS); // alarm id -> the last answer
    this.unknown = 0; // events of a type or version that this page does not know
    this.lastAt = null; // when the newest event was heard, by the hub's clock
  }

  /** Lanes in order: under alarm, then other live ones, then replays, each by name. */
  sorted() {
    const rank = ({ source, last }) => (source === "replay" ? 2 : standing(last) ? 0 : 1);
    return [...this.lanes.values()].sort((a, b) => rank(a) - rank(b) || (a.host < b.host ? -1 : 1));
  }

  /** Keep an event that was heard at that time; gives [type, change of the lane or null]. */
  receive(event, heard) {
    const take = event?.v === 1 && Object.hasOwn(TAKE, event.type) ? TAKE[event.type] : null;
    if (!take) {
      this.unknown += 1;
      return [null, null];
    }
    this.lastAt = Math.max(this.lastAt ?? heard, heard);
    return [event.type, take(this, event, heard) ?? null];
  }
}

const TAKE = {
  live_detection(store, event, heard) {
    const lane = store.lanes.get(keyOf(event)) ?? new Lane(event);
    store.lanes.set(lane.key, lane);
    return lane.add(event, heard);
  },
  phase(store, event) {
    store.phases.set(event.scope, event);
  },
  attack_profile(store, event) {
    store.profiles.set(`${event.name} ${event.channel}`, event);
  },
  prediction(store, event) {
    const windows = store.episodes.get(event.episode_id) ?? new Bounded(WINDOWS);
    store.episodes.set(event.episode_id, windows.set(event.window, event));
  },
  model_metric(store, event) {
    store.metrics.set(`${event.model} ${event.mode ?? ""} ${event.recipe}`, event);
  },
  embedding(store, event) {
    store.points.set(`${event.episode_id} ${event.window}`, event);
  },
  model_perf(store, event) {
    store.perf.set(`${event.model} ${event.mode} ${event.device}`, event);
  },
};
