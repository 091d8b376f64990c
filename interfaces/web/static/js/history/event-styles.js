// Presentation of recorded events: label, icon, tone and details.
// Labels are declared with the events on the server, which serves them as event-labels.js.

import { LABELS } from "./event-labels.js";
import { bytes, count, duration, files, percent, uploadState } from "../format.js";

const STYLES = {
  "batch.started": ["waiting", "quiet", (data) => (data.label ? `${data.label}, pipeline ${data.pipeline}` : `pipeline ${data.pipeline}`)],
  "batch.uploads_added": ["transfer", "quiet", (data) => `${files(data.count)}, ${bytes(data.bytes)}`],
  "batch.sealed": ["done", "quiet"],
  "batch.progressed": ["processing", "quiet", (data) => `${percent(data.percent)}: ${counted(data.counts)}`],
  "batch.paused": ["paused", "warn", (data) => data.reason],
  "batch.resumed": ["processing", "active"],
  "batch.prioritized": ["transfer", "quiet", (data) => String(data.priority)],
  "batch.retry_requested": ["retry", "warn"],
  "batch.renamed": ["transfer", "quiet", (data) => data.label || "no label"],
  "batch.cancelled": ["stopped", "warn", (data) => data.reason],
  "batch.expired": ["gone", "quiet"],
  "batch.reopened": ["retry", "warn", (data) => data.reason],
  "batch.erased": ["gone", "quiet"],
  "batch.completed": ["done", "good", (data) => `${data.outcome.replaceAll("_", " ")}, after ${duration(data.duration)}`],
  "upload.registered": ["waiting", "quiet", (data) => bytes(data.size)],
  "upload.rejected": ["refused", "bad", (data) => data.message],
  "upload.size_declared": ["waiting", "quiet", (data) => bytes(data.size)],
  "upload.file_progressed": ["transfer", "active", progressed],
  "upload.transfer_interrupted": ["paused", "warn", (data) => `${bytes(data.received)} kept: ${data.reason}`],
  "upload.bytes_lost": ["danger", "bad", (data) => `${bytes(data.recorded)} recorded, ${bytes(data.stored)} stored`],
  "upload.file_received": ["queued", "quiet", (data) => bytes(data.size)],
  "upload.queued": ["queued", "quiet"],
  "upload.attempt_started": ["processing", "active", (data) => `attempt ${data.number} on ${data.worker}`],
  "upload.attempt_failed": ["failed", "bad", (data) => `attempt ${data.number}, ${data.step}: ${data.message}`],
  "upload.attempt_abandoned": ["stopped", "warn", (data) => `attempt ${data.number}: ${data.reason}`],
  "upload.attempt_succeeded": ["done", "good", (data) => `attempt ${data.number}, in ${duration(data.duration)}`],
  "upload.completed": ["done", "good"],
  "upload.failed": ["failed", "bad", (data) => `${data.step}: ${data.message}`],
  "upload.quarantined": ["danger", "bad", (data) => `${data.step}: ${data.reason}`],
  "upload.retry_requested": ["retry", "warn"],
  "upload.released": ["done", "good", (data) => data.reason],
  "upload.cancelled": ["stopped", "quiet", (data) => data.reason],
  "upload.expired": ["gone", "quiet"],
  "upload.erased": ["gone", "quiet"],
};

/** Return the presentation of an event. An unknown event type is its own label. */
export function styleOf(item) {
  const [shape, tone, details] = STYLES[item.type] ?? ["waiting", "quiet"];
  return { word: LABELS[item.type] ?? item.type, shape, tone, details: details?.(item.data) ?? "" };
}

function progressed(data) {
  const what = data.phase === "transfer" ? bytes(data.done) : data.phase;
  return data.percent === null || data.percent === undefined ? what : `${what}, ${percent(data.percent)}`;
}

function counted(counts) {
  return Object.entries(counts)
    .filter(([, number]) => number)
    .map(([state, number]) => `${count(number)} ${uploadState(state).word.toLowerCase()}`)
    .join(", ");
}
