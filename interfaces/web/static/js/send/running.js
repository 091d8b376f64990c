// How far the sending is: in all, and file by file; to be paused, gone on with, or left.

import { tally } from "../chip.js";
import { attribute, glyph, h, oncePerFrame, text } from "../dom.js";
import { VirtualList } from "../table.js";
import { bytes, count, duration, files, percent } from "../words.js";
import { desk, tallyOf } from "./desk.js";
import { Pace } from "./pace.js";
import { itemRow, ORDER, sendState } from "./row.js";

const ROW = 44; // pixels; the style sheet knows it too
const REASONS = 8; // told at most
const SORTED = 500; // milliseconds between two sortings
const RANK = new Map(ORDER.map((state, rank) => [state, rank]));

export class Running {
  constructor() {
    this.pace = new Pace();
    this.sortedAt = -Infinity;
    this.draw = oncePerFrame(() => this.#draw());
    this.fill = h("span.bar-fill");
    this.bar = h("div.bar", { role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": "Sent" }, this.fill);
    this.percent = h("p.figure");
    this.beside = h("p.beside");
    this.counts = h("ul.tally");
    this.problem = h("p.problem", { role: "alert" });
    this.batch = h("a", {}, "View batch");
    this.buttons = {
      pause: act("Pause", "paused", () => desk.sending.pause()),
      resume: act("Resume", "processing", () => desk.sending.run()),
      again: act("Retry rejected files", "retry", () => desk.sending.again()),
      seal: act("Seal without rejected files", "done", () => this.#seal()),
      leave: act("Close", "close", () => desk.dismiss()),
    };
    this.reasons = h("ul.reasons");
    this.why = h("section.why", { "aria-label": "Rejected files by reason" }, h("h2", {}, "Rejected files"), this.reasons);
    this.list = new VirtualList({ label: "Files", rowHeight: ROW, make: itemRow, chosen: () => {} });
    this.element = h("div", {},
      h("section.overall", {}, this.percent, h("div.grow", {}, this.bar, this.beside)),
      h("div.actions", {}, h("div.buttons", {}, ...Object.values(this.buttons)), this.problem),
      this.why,
      h("div.row.foot", {}, this.counts, this.batch),
      h("div.split", {}, h("div.list", {}, this.list.element)));
  }

  close() {
    this.list.close();
  }

  async #seal() {
    try {
      await desk.sending.seal();
    } catch (error) {
      desk.sending.problem = error.message;
      this.draw();
    }
  }

  #draw() {
    const { sending } = desk;
    if (!sending) return;
    const now = tallyOf(sending);
    this.fill.style.inlineSize = `${now.percent}%`;
    attribute(this.bar, "aria-valuenow", Math.floor(now.percent));
    text(this.percent, percent(now.percent));
    text(this.beside, this.#said(sending, now));
    this.counts.replaceChildren(...tally(now, sendState, ORDER, count));
    this.batch.hidden = !sending.batch;
    attribute(this.batch, "href", `#/batches/${sending.batch}`);
    text(this.problem, sending.problem ?? "");
    this.problem.hidden = !sending.problem;
    this.#offer(sending, now);
    this.#drawReasons(sending, now);
    if (performance.now() - this.sortedAt > SORTED || !desk.busy) this.#sort(sending);
  }

  #offer({ state, sealed, batch, plan }, now) {
    const over = state === "done";
    // Disabled where they are, never moved: a second click must not meet another button.
    this.buttons.pause.disabled = !desk.busy;
    this.buttons.resume.disabled = state !== "paused";
    this.buttons.again.disabled = !over || !now.refused || sealed;
    this.buttons.seal.disabled = !over || !now.refused || sealed || !plan.seal || !batch;
    this.buttons.leave.disabled = desk.busy;
    text(this.buttons.leave.lastChild, over ? "Upload more" : "Close");
  }

  #said({ state, hitch, sealed, plan }, now) {
    if (state === "preparing") return hitch ?? "Checking which files the server already has";
    const sent = `${bytes(Math.min(now.bytes, now.total))} of ${bytes(now.total)}`;
    if (state === "done") {
      const arrived = now.sent + now.there;
      if (now.refused) return `${files(now.refused)} rejected; ${arrived ? `${files(arrived)} received` : "no files received"}`;
      return plan.seal || sealed ? "All files received, batch sealed" : "All files received";
    }
    if (state === "paused") return `${sent}, paused. Received data is kept.`;
    if (hitch) return `${sent}. ${hitch} Retrying`;
    const { rate, left } = this.pace.at(now.bytes, now.total);
    return rate ? `${sent}, ${bytes(rate)}/s, ${duration(Math.max(1, left))} left` : sent;
  }

  #drawReasons({ items }, { refused }) {
    this.why.hidden = !refused;
    if (refused === this.told) return;
    this.told = refused;
    const groups = new Map();
    for (const { state, message } of items) {
      if (state === "refused") groups.set(message, (groups.get(message) ?? 0) + 1);
    }
    const most = [...groups].sort(([, a], [, b]) => b - a).slice(0, REASONS);
    this.reasons.replaceChildren(...most.map(([message, number]) => h("li.why-not", {},
      glyph("refused"), h("span.reason", {}, message), h("span.number", {}, files(number)))));
  }

  /** What needs somebody comes first, then what is on its way. */
  #sort({ items }) {
    this.sortedAt = performance.now();
    const order = new Map(items.map((item, index) => [item, index]));
    const rows = [...items].sort((a, b) => RANK.get(a.state) - RANK.get(b.state) || order.get(a) - order.get(b));
    this.list.show(rows);
  }
}

function act(name, shape, onclick) {
  return h("button", { type: "button", onclick }, glyph(shape), h("span", {}, name));
}
