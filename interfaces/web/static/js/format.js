// Labels of states (word, icon, tone) and formats of sizes and times.

const UPLOAD = {
  registered: ["Waiting", "waiting", "quiet"],
  transferring: ["Transferring", "transfer", "active"],
  received: ["Received", "queued", "quiet"],
  queued: ["Queued", "queued", "quiet"],
  processing: ["Processing", "processing", "active"],
  retry_scheduled: ["Retry scheduled", "retry", "warn"],
  completed: ["Completed", "done", "good"],
  failed: ["Failed", "failed", "bad"],
  quarantined: ["Quarantined", "danger", "bad"],
  rejected: ["Rejected", "refused", "bad"],
  cancelled: ["Cancelled", "stopped", "quiet"],
  expired: ["Expired", "gone", "quiet"],
  erased: ["Erased", "gone", "quiet"],
};

const OUTCOME = {
  succeeded: ["Succeeded", "done", "good"],
  completed_with_failures: ["Completed with failures", "partly", "bad"],
  failed: ["Failed", "failed", "bad"],
  cancelled: ["Cancelled", "stopped", "quiet"],
  expired: ["Expired", "gone", "quiet"],
};

/** Labels of the `activity` of an unfinished batch. */
const ACTIVITY = {
  receiving: ["Receiving", "transfer", "active"],
  processing: ["Processing", "processing", "active"],
  waiting_for_files: ["Waiting for files", "waiting", "quiet"],
  waiting_for_seal: ["Waiting for seal", "waiting", "warn"],
  waiting_for_retry: ["Waiting for retry", "retry", "warn"],
  stalled: ["Stalled", "stopped", "warn"],
  paused: ["Paused", "paused", "warn"],
};

const ATTEMPT = {
  running: ["Running", "processing", "active"],
  succeeded: ["Succeeded", "done", "good"],
  failed: ["Failed", "failed", "bad"],
  abandoned: ["Abandoned", "stopped", "quiet"],
};

/** States by urgency. */
export const STATES = [
  "failed", "quarantined", "rejected", "retry_scheduled", "processing", "transferring",
  "queued", "received", "registered", "expired", "cancelled", "completed", "erased",
];
export const FAILED_STATES = new Set(["failed", "quarantined", "rejected"]);
const ENDED = new Set([...FAILED_STATES, "completed", "cancelled", "expired", "erased"]);

const described = ([word, shape, tone]) => ({ word, shape, tone });
const unknownState = (state) => [state.replaceAll("_", " "), "waiting", "quiet"];

export const uploadState = (state) => described(UPLOAD[state] ?? unknownState(state));
export const attemptState = (state) => described(ATTEMPT[state] ?? unknownState(state));

export function batchState(batch) {
  if (batch.outcome) return described(OUTCOME[batch.outcome] ?? unknownState(batch.outcome));
  if (batch.activity) return described(ACTIVITY[batch.activity] ?? unknownState(batch.activity));
  return described(batch.state === "cancelling" ? ["Cancelling", "stopped", "warn"] : unknownState(batch.state));
}

/** Return an explanation of the activity, or an empty string. */
export function activityNote(batch) {
  const since = batch.activity_since && `since ${calendar(batch.activity_since)}, ${ago(batch.activity_since)}`;
  if (batch.activity === "stalled") return `No activity ${since}`;
  if (batch.activity === "paused") return [batch.pause_reason ? `Paused: ${batch.pause_reason}` : "Paused", since].filter(Boolean).join(", ");
  if (batch.activity === "waiting_for_seal") return "All files are done. The batch completes once it is sealed; until then, files can be added.";
  return "";
}

export const count = (number) => new Intl.NumberFormat("en").format(number);
export const files = (number) => (number === 1 ? "1 file" : `${count(number)} files`);
export const percent = (value) => `${Math.floor(value ?? 0)} %`;
export const batchName = (batch) => batch.label || `Batch ${batch.id.slice(-8)}`;
export const sum = (counts, wanted) =>
  Object.entries(counts).reduce((all, [state, n]) => all + (wanted.has(state) ? n : 0), 0);
export const failures = (batch) => sum(batch.counts, FAILED_STATES);
export const ended = (batch) => sum(batch.counts, ENDED);

const UNITS = ["B", "KB", "MB", "GB", "TB", "PB"];

export function bytes(size) {
  if (size === null || size === undefined) return "size unknown";
  const power = Math.min(UNITS.length - 1, size < 1000 ? 0 : Math.floor(Math.log10(size) / 3));
  const value = size / 1000 ** power;
  return `${power && value < 100 ? value.toFixed(1) : Math.floor(value)} ${UNITS[power]}`;
}

export function duration(seconds) {
  if (seconds < 1) return `${Math.max(1, Math.round(seconds * 1000))} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

export function ago(moment, now = Date.now()) {
  const seconds = (now - Date.parse(moment)) / 1000;
  if (seconds < 10) return "just now";
  return `${duration(seconds).replace(/ (s|min|h|d) .*/, " $1")} ago`;
}

export function until(moment, now = Date.now()) {
  const seconds = (Date.parse(moment) - now) / 1000;
  return seconds <= 0 ? "now" : `in ${duration(Math.max(1, Math.ceil(seconds)))}`.replace(".0", "");
}

const CLOCK = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const CALENDAR = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

export const clock = (moment) => CLOCK.format(new Date(moment));
export const calendar = (moment) => CALENDAR.format(new Date(moment));
