// Recorded events in words: what happened has a word, a shape and a tone, and its details.

import { bytes, count, duration, files, percent, uploadState } from "../words.js";

const EVENTS = {
  "batch.started": ["Batch started", "waiting", "quiet", (it) => (it.label ? `${it.label}, pipeline ${it.pipeline}` : `pipeline ${it.pipeline}`)],
  "batch.uploads_added": ["Files added", "transfer", "quiet", (it) => `${files(it.count)}, ${bytes(it.bytes)}`],
  "batch.sealed": ["Sealed", "done", "quiet"],
  "batch.progressed": ["Counted", "processing", "quiet", (it) => `${percent(it.percent)}: ${counted(it.counts)}`],
  "batch.paused": ["Paused", "paused", "warn", (it) => it.reason],
  "batch.resumed": ["Resumed", "processing", "active"],
  "batch.prioritized": ["Priority set", "transfer", "quiet", (it) => String(it.priority)],
  "batch.retry_requested": ["Retry of failed ones", "retry", "warn"],
  "batch.cancelled": ["Batch cancelled", "stopped", "warn", (it) => it.reason],
  "batch.expired": ["Batch expired", "gone", "quiet"],
  "batch.reopened": ["Reopened", "retry", "warn", (it) => it.reason],
  "batch.erased": ["Erased", "gone", "quiet"],
  "batch.completed": ["Batch completed", "done", "good", (it) => `${it.outcome.replaceAll("_", " ")}, after ${duration(it.duration)}`],
  "upload.registered": ["Registered", "waiting", "quiet", (it) => bytes(it.size)],
  "upload.rejected": ["Rejected", "refused", "bad", (it) => it.message],
  "upload.size_declared": ["Size declared", "waiting", "quiet", (it) => bytes(it.size)],
  "upload.file_progressed": ["Progressed", "transfer", "active", progressed],
  "upload.transfer_interrupted": ["Interrupted", "paused", "warn", (it) => `${bytes(it.received)} kept: ${it.reason}`],
  "upload.bytes_lost": ["Bytes lost", "danger", "bad", (it) => `${bytes(it.recorded)} recorded, ${bytes(it.stored)} stored`],
  "upload.file_received": ["Received", "queued", "quiet", (it) => bytes(it.size)],
  "upload.queued": ["Queued", "queued", "quiet"],
  "upload.attempt_started": ["Attempt started", "processing", "active", (it) => `attempt ${it.number} on ${it.worker}`],
  "upload.attempt_failed": ["Attempt failed", "failed", "bad", (it) => `attempt ${it.number}, ${it.step}: ${it.message}`],
  "upload.attempt_abandoned": ["Attempt abandoned", "stopped", "warn", (it) => `attempt ${it.number}: ${it.reason}`],
  "upload.attempt_succeeded": ["Attempt succeeded", "done", "good", (it) => `attempt ${it.number}, in ${duration(it.duration)}`],
  "upload.completed": ["Completed", "done", "good"],
  "upload.failed": ["Failed", "failed", "bad", (it) => `${it.step}: ${it.message}`],
  "upload.quarantined": ["Quarantined", "danger", "bad", (it) => `${it.step}: ${it.reason}`],
  "upload.retry_requested": ["Retry requested", "retry", "warn"],
  "upload.released": ["Released", "done", "good", (it) => it.reason],
  "upload.cancelled": ["Cancelled", "stopped", "quiet", (it) => it.reason],
  "upload.expired": ["Expired", "gone", "quiet"],
  "upload.erased": ["Erased", "gone", "quiet"],
};

/** What an event says; of a kind this page does not know, its name. */
export function told(item) {
  const [word, shape, tone, details] = EVENTS[item.type] ?? [item.type, "waiting", "quiet"];
  return { word, shape, tone, details: details?.(item.data) ?? "" };
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
