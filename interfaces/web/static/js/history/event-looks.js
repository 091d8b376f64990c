// How recorded events look in a history: their label, shape, tone and details.
// Labels are declared with the events on the server, which serves them as event-labels.js.

import { LABELS } from "./event-labels.js";
import { bytes, count, duration, files, percent, uploadState } from "../words.js";

const LOOKS = {
  "batch.started": ["waiting", "quiet", (it) => (it.label ? `${it.label}, pipeline ${it.pipeline}` : `pipeline ${it.pipeline}`)],
  "batch.uploads_added": ["transfer", "quiet", (it) => `${files(it.count)}, ${bytes(it.bytes)}`],
  "batch.sealed": ["done", "quiet"],
  "batch.progressed": ["processing", "quiet", (it) => `${percent(it.percent)}: ${counted(it.counts)}`],
  "batch.paused": ["paused", "warn", (it) => it.reason],
  "batch.resumed": ["processing", "active"],
  "batch.prioritized": ["transfer", "quiet", (it) => String(it.priority)],
  "batch.retry_requested": ["retry", "warn"],
  "batch.cancelled": ["stopped", "warn", (it) => it.reason],
  "batch.expired": ["gone", "quiet"],
  "batch.reopened": ["retry", "warn", (it) => it.reason],
  "batch.erased": ["gone", "quiet"],
  "batch.completed": ["done", "good", (it) => `${it.outcome.replaceAll("_", " ")}, after ${duration(it.duration)}`],
  "upload.registered": ["waiting", "quiet", (it) => bytes(it.size)],
  "upload.rejected": ["refused", "bad", (it) => it.message],
  "upload.size_declared": ["waiting", "quiet", (it) => bytes(it.size)],
  "upload.file_progressed": ["transfer", "active", progressed],
  "upload.transfer_interrupted": ["paused", "warn", (it) => `${bytes(it.received)} kept: ${it.reason}`],
  "upload.bytes_lost": ["danger", "bad", (it) => `${bytes(it.recorded)} recorded, ${bytes(it.stored)} stored`],
  "upload.file_received": ["queued", "quiet", (it) => bytes(it.size)],
  "upload.queued": ["queued", "quiet"],
  "upload.attempt_started": ["processing", "active", (it) => `attempt ${it.number} on ${it.worker}`],
  "upload.attempt_failed": ["failed", "bad", (it) => `attempt ${it.number}, ${it.step}: ${it.message}`],
  "upload.attempt_abandoned": ["stopped", "warn", (it) => `attempt ${it.number}: ${it.reason}`],
  "upload.attempt_succeeded": ["done", "good", (it) => `attempt ${it.number}, in ${duration(it.duration)}`],
  "upload.completed": ["done", "good"],
  "upload.failed": ["failed", "bad", (it) => `${it.step}: ${it.message}`],
  "upload.quarantined": ["danger", "bad", (it) => `${it.step}: ${it.reason}`],
  "upload.retry_requested": ["retry", "warn"],
  "upload.released": ["done", "good", (it) => it.reason],
  "upload.cancelled": ["stopped", "quiet", (it) => it.reason],
  "upload.expired": ["gone", "quiet"],
  "upload.erased": ["gone", "quiet"],
};

/** The look of an event; one of an unknown type is shown by its type. */
export function lookOf(item) {
  const [shape, tone, details] = LOOKS[item.type] ?? ["waiting", "quiet"];
  return { word: LABELS[item.type] ?? item.type, shape, tone, details: details?.(item.data) ?? "" };
}

function progressed(it) {
  const what = it.phase === "transfer" ? bytes(it.done) : it.phase;
  return it.percent === null || it.percent === undefined ? what : `${what}, ${percent(it.percent)}`;
}

function counted(counts) {
  return Object.entries(counts)
    .filter(([, number]) => number)
    .map(([state, number]) => `${count(number)} ${uploadState(state).word.toLowerCase()}`)
    .join(", ");
}
