// View of the upload in progress: totals, files, and buttons to pause, resume or close.

import { tally } from "../state-chip.js";
import { attribute, glyph, h, oncePerFrame, text } from "../dom.js";
import { VirtualList } from "../virtual-list.js";
import { bytes, count, duration, files, percent } from "../format.js";
import { uploadManager, tallyOf } from "./upload-manager.js";
import { Throughput } from "./throughput.js";
import { itemRow, ORDER, sendState } from "./file-row.js";

const ROW_HEIGHT = 44; // pixels; same as --row in app.css
const MAX_REASONS = 8; // shown at most
const SORT_INTERVAL = 500; // milliseconds between two sorts
const RANK = new Map(ORDER.map((state, rank) => [state, rank]));

export class UploadProgressView {
  constructor() {
    this.throughput = new Throughput();
    this.sortedAt = -Infinity;
    this.draw = oncePerFrame(() => this.#draw());
    this.fill = h("span.bar-fill");
    this.bar = h("div.bar", { role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": "Sent" }, this.fill);
    this.percent = h("p.figure");
    this.beside = h("p.aside-note");
    this.counts = h("ul.tally");
    this.problem = h("p.problem", { role: "alert" });
    this.batch = h("a", {}, "View batch");
    this.buttons = {
      pause: iconButton("Pause", "paused", () => uploadManager.current.pause()),
      resume: iconButton("Resume", "processing", () => uploadManager.current.run()),
      retry: iconButton("Retry rejected files", "retry", () => uploadManager.current.retryRejected()),
      seal: iconButton("Seal without rejected files", "done", () => this.#seal()),
      close: iconButton("Close", "close", () => uploadManager.dismiss()),
    };
    this.reasons = h("ul.reasons");
    this.rejectionPanel = h("section.failures", { "aria-label": "Rejected files by reason" }, h("h2", {}, "Rejected files"), this.reasons);
    this.list = new VirtualList({ label: "Files", rowHeight: ROW_HEIGHT, make: itemRow, onSelect: () => {} });
    this.element = h("div", {},
      h("section.overall", {}, this.percent, h("div.grow", {}, this.bar, this.beside)),
      h("div.actions", {}, h("div.buttons", {}, ...Object.values(this.buttons)), this.problem),
      this.rejectionPanel,
      h("div.row.foot", {}, this.counts, this.batch),
      h("div.split", {}, h("div.list", {}, this.list.element)));
  }

  close() {
    this.list.close();
  }

  async #seal() {
    try {
      await uploadManager.current.seal();
    } catch (error) {
      uploadManager.current.problem = error.message;
      this.draw();
    }
  }

  #draw() {
    const upload = uploadManager.current;
    if (!upload) return;
    const now = tallyOf(upload);
    this.fill.style.inlineSize = `${now.percent}%`;
    attribute(this.bar, "aria-valuenow", Math.floor(now.percent));
    text(this.percent, percent(now.percent));
    text(this.beside, this.#progressText(upload, now));
    this.counts.replaceChildren(...tally(now, sendState, ORDER, count));
    this.batch.hidden = !upload.batch;
    attribute(this.batch, "href", `#/batches/${upload.batch}`);
    text(this.problem, upload.problem ?? "");
    this.problem.hidden = !upload.problem;
    this.#updateButtons(upload, now);
    this.#drawReasons(upload, now);
    if (performance.now() - this.sortedAt > SORT_INTERVAL || !uploadManager.isActive) this.#sort(upload);
  }

  #updateButtons({ state, sealed, batch, plan }, now) {
    const isDone = state === "done";
    // Disabled in place: a second click must not hit another button.
    this.buttons.pause.disabled = !uploadManager.isActive;
    this.buttons.resume.disabled = state !== "paused";
    this.buttons.retry.disabled = !isDone || !now.refused || sealed;
    this.buttons.seal.disabled = !isDone || !now.refused || sealed || !plan.seal || !batch;
    this.buttons.close.disabled = uploadManager.isActive;
    text(this.buttons.close.lastChild, isDone ? "Upload more" : "Close");
  }

  #progressText({ state, temporaryError, sealed, plan }, now) {
    if (state === "preparing") return temporaryError ?? "Checking which files the server already has";
    const sent = `${bytes(Math.min(now.bytes, now.total))} of ${bytes(now.total)}`;
    if (state === "done") {
      const arrived = now.sent + now.there;
      if (now.refused) return `${files(now.refused)} rejected; ${arrived ? `${files(arrived)} received` : "no files received"}`;
      return plan.seal || sealed ? "All files received, batch sealed" : "All files received";
    }
    if (state === "paused") return `${sent}, paused. Received data is kept.`;
    if (temporaryError) return `${sent}. ${temporaryError} Retrying`;
    const { rate, left } = this.throughput.measure(now.bytes, now.total);
    return rate ? `${sent}, ${bytes(rate)}/s, ${duration(Math.max(1, left))} left` : sent;
  }

  #drawReasons({ items }, { refused }) {
    this.rejectionPanel.hidden = !refused;
    if (refused === this.shownRejected) return;
    this.shownRejected = refused;
    const groups = new Map();
    for (const { state, message } of items) {
      if (state === "refused") groups.set(message, (groups.get(message) ?? 0) + 1);
    }
    const most = [...groups].sort(([, a], [, b]) => b - a).slice(0, MAX_REASONS);
    this.reasons.replaceChildren(...most.map(([message, number]) => h("li.rejection", {},
      glyph("refused"), h("span.reason", {}, message), h("span.number", {}, files(number)))));
  }

  /** Sort rejected files first, then those in progress. */
  #sort({ items }) {
    this.sortedAt = performance.now();
    const order = new Map(items.map((item, index) => [item, index]));
    const rows = [...items].sort((a, b) => RANK.get(a.state) - RANK.get(b.state) || order.get(a) - order.get(b));
    this.list.show(rows);
  }
}

function iconButton(name, shape, onclick) {
  return h("button", { type: "button", onclick }, glyph(shape), h("span", {}, name));
}
