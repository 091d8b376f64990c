// Transfer errors, and retries of temporary ones.

const FIRST_DELAY = 1000; // milliseconds; doubled at each failure, with full jitter
const MAX_DELAY = 30_000;
const TEMPORARY_STATUSES = new Set([0, 408, 423, 429]); // and 5xx except 507 (disk full)
const TEMPORARY_CONFLICTS = new Set(["busy", "conflict"]); // codes of a 409 after which the request is repeated

/** `retryAfter` is the Retry-After of the server, in seconds. */
export class TransferError extends Error {
  constructor(message, status, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** Return whether a retry can succeed. A 409 without a code is a wrong offset, which is requested anew. */
function isTemporary({ name, status, code }) {
  if (name === "AbortError" || status === undefined) return false;
  if (status === 409) return code === undefined || TEMPORARY_CONFLICTS.has(code);
  return TEMPORARY_STATUSES.has(status) || (status >= 500 && status !== 507);
}

export const CONNECTION_LOST = "The connection to the server was lost.";

/** Repeat `act` until it succeeds or fails permanently. `waiting` is called with the error before each pause, and with null after it. */
export async function retryTemporary(act, signal, waiting) {
  for (let failures = 0; ; failures++) {
    try {
      return await act();
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      if (!isTemporary(error)) throw error;
      waiting(error);
      await pause(failures, error.retryAfter, signal);
      waiting(null);
    }
  }
}

/** Wait before the next try; ends early when the browser is online again. Raises the signal's abort reason. */
function pause(failures, retryAfter, signal) {
  const longest = Math.min(MAX_DELAY, FIRST_DELAY * 2 ** failures);
  const time = retryAfter === null || retryAfter === undefined ? Math.random() * longest : Math.min(MAX_DELAY, retryAfter * 1000);
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
