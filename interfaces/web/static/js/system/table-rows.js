// Table rows of processes and workers.

import { chip } from "../state-chip.js";
import { h } from "../dom.js";
import { ago, calendar, count, percent } from "../format.js";

const ALIVE = { word: "Alive", shape: "done", tone: "good" };
const SILENT = { word: "No heartbeat", shape: "danger", tone: "bad" };
const LEADS = { word: "Leader", shape: "processing", tone: "active" };

export function processRow(process) {
  return h("tr", { "data-process": process.id },
    h("th", { scope: "row" }, `${process.machine}, ${process.pid}`),
    h("td", {}, stateChip(process.alive ? ALIVE : SILENT)),
    h("td.roles", {}, process.roles.join(", "), process.leads ? stateChip(LEADS) : null),
    h("td", {}, process.version),
    h("td", { title: calendar(process.started_at) }, ago(process.started_at)),
    h("td", { title: calendar(process.last_heartbeat) }, ago(process.last_heartbeat)));
}

export function workerRow(worker) {
  return h("tr", {},
    h("th", { scope: "row" }, worker.name ?? (worker.id === null ? "unknown" : `worker ${worker.id}`)),
    h("td", {}, stateChip(worker.alive ? ALIVE : SILENT)),
    h("td", {}, count(worker.jobs)),
    h("td", {}, worker.attempts.length ? h("ul", {}, ...worker.attempts.slice(0, 5).map(attemptItem), moreItem(worker.attempts.length - 5)) : "none"),
    h("td", {}, worker.last_heartbeat ? ago(worker.last_heartbeat) : "never"));
}

function attemptItem(attempt) {
  const step = attempt.step ? `${attempt.step}${attempt.percent === null ? "" : ` ${percent(attempt.percent)}`}` : "started";
  return h("li", {}, h("a", { href: `#/batches/${attempt.batch}/uploads/${attempt.upload}/history` }, `attempt ${attempt.number}`), `, ${step}`);
}

const moreItem = (number) => (number > 0 ? h("li", {}, `and ${count(number)} more`) : null);

function stateChip(state) {
  const made = chip();
  made.update(state);
  return made.element;
}

