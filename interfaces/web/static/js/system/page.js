// The machinery: who runs, who leads, who works on what, and whether all of it keeps up.

import { get, getText } from "../api.js";
import { glyph, h, text } from "../dom.js";
import { Poll } from "../poll.js";
import { parsed } from "./metrics.js";
import { processRow, workerRow } from "./rows.js";
import { tiles } from "./tiles.js";

const PAUSE = 2; // seconds between two looks

export class SystemPage {
  title = "System";
  section = "system";
  follows = "*";

  constructor() {
    this.summary = h("p.summary");
    this.problem = h("p.problem", { role: "alert" });
    this.mixed = h("p.pause", {}, glyph("danger"), h("span"));
    this.tiles = tiles();
    this.processes = table("Processes", ["Machine, process", "State", "Roles", "Version", "Started", "Last heartbeat"]);
    this.workers = table("Workers", ["Worker", "State", "Jobs", "Running attempts", "Last heartbeat"]);
    this.element = h("section.system", {},
      h("div.heading", {}, h("div", {}, h("h1", {}, "System"), this.summary, this.mixed)),
      this.problem, this.tiles.element, this.processes.element, this.workers.element,
      h("p.beside", {}, "Machine-readable: ", h("a", { href: "/metrics" }, "metrics"), ", ", h("a", { href: "/readyz" }, "readiness"),
        ", ", h("a", { href: "/openapi.json" }, "OpenAPI"), "."));
    this.poll = new Poll(() => this.#ask(), (message) => this.#complain(message), PAUSE);
  }

  close() {
    this.poll.close();
  }

  changed() {} // the feed tells nothing of this

  async #ask() {
    const [metrics, { processes, workers }] = await Promise.all([getText("/metrics"), get("/v1/workers")]);
    this.tiles.update(parsed(metrics));
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

  #complain(message) {
    text(this.problem, message ?? "");
    this.problem.hidden = message === null;
  }
}

/** A table with a caption; `show(rows, none)` fills it. It scrolls sideways where it is wide. */
function table(name, columns) {
  const body = h("tbody");
  const none = h("p.empty.small");
  const element = h("section.board", {},
    h("h2", {}, name),
    h("div.sideways", { tabindex: 0, role: "region", "aria-label": name },
      h("table", {}, h("thead", {}, h("tr", {}, ...columns.map((column) => h("th", { scope: "col" }, column)))), body), none));
  const show = (rows, words) => {
    body.replaceChildren(...rows);
    none.hidden = rows.length > 0;
    text(none, words);
  };
  return { element, show };
}
