// What goes wrong on the way to the server, and how long to wait before trying again.

const FIRST_WAIT = 1000; // milliseconds; doubled at each failure, with full jitter
const LONGEST_WAIT = 30_000;
const PASSING = new Set([0, 408, 423, 429]); // beside those of 500 and more; 507 takes somebody to make room
const AGAIN = new Set(["busy", "conflict"]); // codes of a 409 that ask for another try

/** `after` is how long the server asked to be left alone, in seconds. */
export class Trouble extends Error {
  constructor(message, status, after = null) {
    super(message);
    this.status = status;
    this.after = after;
  }
}

/** Of bytes a 409 says that they began at the wrong place: they begin at the right one next time. */
function isPassing({ name, status, code }) {
  if (name === "AbortError" || status === undefined) return false;
  if (status === 409) return code === undefined || AGAIN.has(code);
  return PASSING.has(status) || (status >= 500 && status !== 507);
}

export const LOST = "The connection to the server was lost.";

/** Does it until it succeeds, or fails for good; `waiting(error)` hears of each pause, null of its end. */
export async function persist(act, signal, waiting) {
  for (let failures = 0; ; failures++) {
    try {
      return await act();
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      if (!isPassing(error)) throw error;
      waiting(error);
      await pause(failures, error.after, signal);
      waiting(null);
    }
  }
}

/** Ends early when the browser finds its network again. Raises what the signal was aborted with. */
function pause(failures, after, signal) {
  const longest = Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** failures);
  const time = after === null || after === undefined ? Math.random() * longest : Math.min(LONGEST_WAIT, after * 1000);
  return new Promise((resolve, reject) => {
    const end = (settle) => () => {
      clearTimeout(timer);
      removeEventListener("online", over);
      signal.removeEventListener("abort", off);
      settle();
    };
    const over = end(resolve);
    const off = end(() => reject(signal.reason));
    const timer = setTimeout(over, time);
    addEventListener("online", over);
    signal.addEventListener("abort", off);
  });
}
