// What an operator can do with a batch or an upload, by its state; the server has the last word.

import { OPERATORS, post, principal, Refused } from "./api.js";
import { ask } from "./ask.js";
import { arrange, glyph, h, text } from "./dom.js";
import { batchName, files } from "./words.js";

const RUNNING = new Set(["open", "sealed"]);
const OVER = new Set(["completed", "failed", "quarantined", "rejected", "cancelled", "expired", "erased"]);
const FOR_GOOD = new Set(["cancelled", "expired"]); // endings whose batch is not reopened

const BATCH = [
  {
    name: "Retry failed", shape: "retry",
    offered: (batch) => batch.counts.failed > 0 && batch.state !== "cancelling" && !FOR_GOOD.has(batch.outcome),
    act: (batch) => post("batches", batch.id, "retry"),
  },
  {
    name: "Pause", shape: "paused",
    offered: (batch) => RUNNING.has(batch.state) && !batch.paused,
    act: (batch) => post("batches", batch.id, "pause"),
  },
  {
    name: "Resume", shape: "processing",
    offered: (batch) => RUNNING.has(batch.state) && batch.paused,
    act: (batch) => post("batches", batch.id, "resume"),
  },
  {
    name: "Priority", shape: "transfer",
    offered: (batch) => RUNNING.has(batch.state),
    question: (batch) => ({
      title: `Priority of ${batchName(batch)}`, yes: "Set priority",
      text: "Work of a higher priority is released first. Everything has 0 until somebody says otherwise.",
      field: { label: "Priority, -100 to 100", type: "number", min: -100, max: 100, step: 1, required: true, value: batch.priority },
    }),
    act: (batch, answer) => post("batches", batch.id, "priority", { priority: Number(answer) }),
  },
  {
    name: "Seal", shape: "done",
    offered: (batch) => batch.state === "open" && batch.uploads > 0,
    question: (batch) => ({
      title: `Seal ${batchName(batch)}?`, yes: "Seal",
      text: "No more files will join it. It completes when those it has are processed.",
    }),
    act: (batch) => post("batches", batch.id, "seal"),
  },
  {
    name: "Cancel", shape: "stopped",
    offered: (batch) => RUNNING.has(batch.state),
    question: (batch) => ({
      title: `Cancel ${batchName(batch)}?`, yes: "Cancel the batch",
      text: `Whatever of its ${files(batch.uploads)} has not ended is cancelled. This cannot be undone.`,
      field: { label: "Reason, kept in the history", required: true, maxlength: 500 },
    }),
    act: (batch, reason) => post("batches", batch.id, "cancel", { reason }),
  },
];

const UPLOAD = [
  {
    name: "Retry", shape: "retry",
    offered: (upload) => upload.state === "failed",
    act: (upload) => post("uploads", upload.id, "retry"),
  },
  {
    name: "Release", shape: "done",
    offered: (upload) => upload.state === "quarantined",
    question: (upload) => ({
      title: `Release ${upload.path}?`, yes: "Release",
      text: "The step that held it is overruled, and the upload completed.",
      field: { label: "Reason, kept in the history", required: true, maxlength: 500 },
    }),
    act: (upload, reason) => post("uploads", upload.id, "release", { reason }),
  },
  {
    name: "Cancel", shape: "stopped",
    offered: (upload) => !OVER.has(upload.state),
    question: (upload) => ({
      title: `Cancel ${upload.path}?`, yes: "Cancel the upload",
      text: "A running attempt is stopped. This cannot be undone.",
      field: { label: "Reason, kept in the history", required: true, maxlength: 500 },
    }),
    act: (upload, reason) => post("uploads", upload.id, "cancel", { reason }),
  },
];

export const batchActions = () => new Actions(BATCH, "What to do with the batch");
export const uploadActions = () => new Actions(UPLOAD, "What to do with the upload");

/** Buttons for what is possible now; `update(row)` as the row changes. Viewers see none. */
export class Actions {
  /** `done()` is called after each, for what no feed tells. */
  constructor(actions, label, done = () => {}) {
    this.actions = actions;
    this.done = done;
    this.buttons = h("div.buttons", { role: "group", "aria-label": label });
    this.problem = h("p.problem", { role: "alert" });
    this.problem.hidden = true;
    this.element = h("div.actions", {}, this.buttons, this.problem);
    this.made = new Map();
    this.allowed = false;
    principal().then((who) => {
      this.allowed = Boolean(who && OPERATORS.has(who.scope));
      if (this.row) this.update(this.row);
    });
  }

  update(row) {
    if (this.row && this.row.id !== row.id) this.problem.hidden = true;
    this.row = row;
    const offered = this.allowed ? this.actions.filter((action) => action.offered(row)) : [];
    arrange(this.buttons, offered.map((action) => this.#button(action)));
  }

  #button(action) {
    if (!this.made.has(action)) {
      this.made.set(action, h("button", { type: "button", onclick: () => this.#perform(action) },
        glyph(action.shape), action.question ? `${action.name}…` : action.name));
    }
    return this.made.get(action);
  }

  /** The feed shows what came of it; only a refusal is told here. */
  async #perform(action) {
    const row = this.row;
    const answer = action.question ? await ask(action.question(row)) : "";
    if (answer === null) return;
    const button = this.made.get(action);
    button.disabled = true;
    this.problem.hidden = true;
    try {
      await action.act(row, answer);
      this.done();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      text(this.problem, error.message);
      this.problem.hidden = false;
    } finally {
      button.disabled = false;
    }
  }
}
