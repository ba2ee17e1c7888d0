// Where what events say stands on an axis of time: one rule for every scene.
//
// A window has the phase at its centre. All that is said of it (phase, score, alarm) is drawn around
// its centre, one stride wide: windows overlap, what is drawn of them does not. Silence is drawn over
// the whole span that it is said of, and lasts until the next word.

export const standing = (event) => event.alarm === "raised" || event.alarm === "standing";
export const centre = ({ start, end }) => (start + end) / 2;
export const cell = (event, stride) => [centre(event) - stride / 2, centre(event) + stride / 2];

/** The shortest step between the last windows; half a window if there is but one. */
export function strideOf(windows) {
  const last = windows.filter((event) => event.phase !== null).slice(-20);
  const steps = last.slice(1).map((event, i) => event.start - last[i].start).filter((step) => step > 0);
  const { start, end } = last.at(-1) ?? windows.at(-1);
  return steps.length ? Math.min(...steps) : (end - start) / 2;
}

function span(windows, i, right, stride) {
  const event = windows[i];
  if (event.phase !== null) return cell(event, stride);
  return [event.start, Math.max(event.end, windows[i + 1]?.start ?? right)];
}

/** Where nothing was heard, as [from, to]; the last silence goes on to `right`. */
export function silences(windows, right) {
  return windows.flatMap((event, i) => (event.phase === null ? [span(windows, i, right, 0)] : []));
}

/** Where an alarm stood, as [from, to]; from word to word of one alarm without a hole. */
export function alarmed(windows, right, stride) {
  const spans = [];
  let before = null;
  for (const [i, event] of windows.entries()) {
    if (standing(event)) {
      const [from, to] = span(windows, i, right, stride);
      if (before && before.alarm_id === event.alarm_id) spans.at(-1)[1] = Math.max(spans.at(-1)[1], to);
      else spans.push([from, to]);
    }
    before = standing(event) ? event : null;
  }
  return spans;
}

/** Spans [from, to, kind] that touch and are of one kind as one. */
export function merged(list) {
  const out = [];
  for (const [from, to, kind] of list) {
    const last = out.at(-1);
    if (last && last[2] === kind && from - last[1] < 0.05) {
      last[0] = Math.min(last[0], from);
      last[1] = Math.max(last[1], to);
    } else out.push([from, to, kind]);
  }
  return out;
}
