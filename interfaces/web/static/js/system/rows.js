// Processes and workers as rows of tables.

import { chip } from "../chip.js";
import { h } from "../dom.js";
import { ago, calendar, count, percent } from "../words.js";

const ALIVE = { word: "Alive", shape: "done", tone: "good" };
const SILENT = { word: "No heartbeat", shape: "danger", tone: "bad" };
const LEADS = { word: "Leader", shape: "processing", tone: "active" };

export function processRow(process) {
  return h("tr", { "data-process": process.id },
    h("th", { scope: "row" }, `${process.machine}, ${process.pid}`),
    h("td", {}, said(process.alive ? ALIVE : SILENT)),
    h("td.roles", {}, process.roles.join(", "), process.leads ? said(LEADS) : null),
    h("td", {}, process.version),
    h("td", { title: calendar(process.started_at) }, ago(process.started_at)),
    h("td", { title: calendar(process.last_heartbeat) }, ago(process.last_heartbeat)));
}

export function workerRow(worker) {
  return h("tr", {},
    h("th", { scope: "row" }, worker.name ?? (worker.id === null ? "unknown" : `worker ${worker.id}`)),
    h("td", {}, said(worker.alive ? ALIVE : SILENT)),
    h("td", {}, count(worker.jobs)),
    h("td", {}, worker.attempts.length ? h("ul", {}, ...worker.attempts.slice(0, 5).map(held), more(worker.attempts.length - 5)) : "none"),
    h("td", {}, worker.last_heartbeat ? ago(worker.last_heartbeat) : "never"));
}

function held(attempt) {
  const step = attempt.step ? `${attempt.step}${attempt.percent === null ? "" : ` ${percent(attempt.percent)}`}` : "started";
  return h("li", {}, h("a", { href: `#/batches/${attempt.batch}/uploads/${attempt.upload}/history` }, `attempt ${attempt.number}`), `, ${step}`);
}

const more = (number) => (number > 0 ? h("li", {}, `and ${count(number)} more`) : null);

function said(state) {
  const made = chip();
  made.update(state);
  return made.element;
}

