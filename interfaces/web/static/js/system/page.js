// System page: processes, leader, workers and metrics.

import { get, getText } from "../api.js";
import { glyph, h, text } from "../dom.js";
import { Poll } from "../poll.js";
import { parseMetrics } from "./metrics.js";
import { processRow, workerRow } from "./table-rows.js";
import { createTiles } from "./tiles.js";

const POLL_SECONDS = 2; // seconds

export class SystemPage {
  title = "System";
  section = "system";
  follows = "*";

  constructor() {
    this.summary = h("p.summary");
    this.problem = h("p.problem", { role: "alert" });
    this.mixed = h("p.status-note", {}, glyph("danger"), h("span"));
    this.tiles = createTiles();
    this.processes = table("Processes", ["Machine, process", "State", "Roles", "Version", "Started", "Last heartbeat"]);
    this.workers = table("Workers", ["Worker", "State", "Jobs", "Running attempts", "Last heartbeat"]);
    this.element = h("section.system", {},
      h("div.heading", {}, h("div", {}, h("h1", {}, "System"), this.summary, this.mixed)),
      this.problem, this.tiles.element, this.processes.element, this.workers.element,
      h("p.aside-note", {}, "Machine-readable: ", h("a", { href: "/metrics" }, "metrics"), ", ", h("a", { href: "/readyz" }, "readiness"),
        ", ", h("a", { href: "/openapi.json" }, "OpenAPI"), "."));
    this.poll = new Poll(() => this.#refresh(), (message) => this.#showProblem(message), POLL_SECONDS);
  }

  close() {
    this.poll.close();
  }

  changed() {} // not part of the feed

  async #refresh() {
    const [metrics, { processes, workers }] = await Promise.all([getText("/metrics"), get("/v1/workers")]);
    this.tiles.update(parseMetrics(metrics));
    this.processes.show(processes.map(processRow), "No process has recorded a heartbeat.");
    this.workers.show(workers.map(workerRow), "No workers: received files wait until a worker starts.");
    const versions = [...new Set(processes.filter(({ alive }) => alive).map(({ version }) => version))];
    this.mixed.hidden = versions.length < 2;
    text(this.mixed.lastChild, ` Processes run different versions: ${versions.join(", ")}`);
    const leader = processes.find(({ leads, alive }) => leads && alive);
    const alive = processes.filter((process) => process.alive).length;
    text(this.summary, `${alive === 1 ? "1 process" : `${alive} processes`} alive; ${leader
      ? `leader: ${leader.machine}, process ${leader.pid}` : "no leader"}`);
  }

  #showProblem(message) {
    text(this.problem, message ?? "");
    this.problem.hidden = message === null;
  }
}

/** Return a table with a heading; `show(rows, message)` fills it, with the message if there are no rows. */
function table(name, columns) {
  const body = h("tbody");
  const none = h("p.empty.small");
  const element = h("section.table-panel", {},
    h("h2", {}, name),
    h("div.table-scroll", { tabindex: 0, role: "region", "aria-label": name },
      h("table", {}, h("thead", {}, h("tr", {}, ...columns.map((column) => h("th", { scope: "col" }, column)))), body), none));
  const show = (rows, message) => {
    body.replaceChildren(...rows);
    none.hidden = rows.length > 0;
    text(none, message);
  };
  return { element, show };
}
