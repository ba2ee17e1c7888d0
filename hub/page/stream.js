// The connection to the hub: events in order, gaps, and whether it stands.

const RETRY_MS = 2000;

/**
 * Listen to the hub for as long as the page is open. `on.event(event)` gets each event, `on.gap(n)`
 * how many were missed (null: not known), `on.state(word)` "connecting", "open" or "lost", and
 * `on.live(at)` the hub's time when all that was kept has come and what follows is new.
 */
export function listen(on) {
  let source = null;
  let last = null;

  function open() {
    // A browser's own retry sends Last-Event-ID; one that has given up has to be told to us.
    source = new EventSource(last === null ? "events" : `events?last_event_id=${encodeURIComponent(last)}`);
    source.onopen = () => on.state("open");
    source.onmessage = (message) => {
      if (message.lastEventId) last = message.lastEventId;
      on.event(parsed(message));
    };
    source.addEventListener("gap", (message) => on.gap(parsed(message)?.missed ?? null));
    source.addEventListener("live", (message) => on.live(parsed(message)?.at ?? null));
    source.onerror = () => {
      on.state("lost");
      if (source.readyState === EventSource.CLOSED) setTimeout(open, RETRY_MS);
    };
  }

  on.state("connecting");
  open();
}

/** A message's document; null if it is none. */
function parsed(message) {
  try {
    return JSON.parse(message.data);
  } catch {
    return null;
  }
}

/** All answers to alarms; throws with what the hub said if it refuses. */
export async function answers() {
  const response = await fetch("answers", { headers: { accept: "application/json" } });
  if (!response.ok) throw new Error(await reason(response));
  return (await response.json()).answers;
}

/** Answer an alarm; throws with what the hub said if it refuses. */
export async function answer(alarm, verdict, note) {
  const response = await fetch("answers", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ alarm_id: alarm.id, host: alarm.host, verdict, note }),
  });
  if (!response.ok) throw new Error(await reason(response));
}

async function reason(response) {
  try {
    const said = await response.json();
    const words = said.error;
    if (typeof words === "string") return words;
  } catch {
    // no document
  }
  return `The hub answered ${response.status}.`;
}
