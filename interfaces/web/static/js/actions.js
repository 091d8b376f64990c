// What an operator can do with a batch or an upload, by its state; the server has the last word.

import { OPERATORS, post, principal, Refused } from "./api.js";
import { ask } from "./ask.js";
import { attribute, glyph, h, text } from "./dom.js";
import { batchName, files } from "./words.js";

const AT_LEAST = 800; // milliseconds that buttons stay disabled: a double click is one click
const LONGEST = 10_000; // milliseconds to wait after a response for the feed to deliver the change

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
      text: "Batches with a higher priority are processed first. The default is 0.",
      field: { label: "Priority, -100 to 100", type: "number", min: -100, max: 100, step: 1, required: true, value: batch.priority },
    }),
    act: (batch, answer) => post("batches", batch.id, "priority", { priority: Number(answer) }),
  },
  {
    name: "Seal", shape: "done",
    offered: (batch) => batch.state === "open" && batch.uploads > 0,
    question: (batch) => ({
      title: `Seal ${batchName(batch)}?`, yes: "Seal",
      text: "No more files can be added. The batch completes when all its files are processed.",
    }),
    act: (batch) => post("batches", batch.id, "seal"),
  },
  {
    name: "Cancel", shape: "stopped",
    offered: (batch) => RUNNING.has(batch.state),
    question: (batch) => ({
      title: `Cancel ${batchName(batch)}?`, yes: "Cancel the batch",
      text: `Of its ${files(batch.uploads)}, all that have not ended are cancelled. This cannot be undone.`,
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
      text: "The upload is completed despite the result of the step that quarantined it.",
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

export const batchActions = () => new Actions(BATCH, "Batch actions");
export const uploadActions = () => new Actions(UPLOAD, "Upload actions");

/**
 * A button for each action, always in the same place: what is not possible now is disabled there,
 * so that a second click never meets another action. `update(row, position)` as the row changes.
 * Viewers see none.
 */
export class Actions {
  #flight = null; // {answered, position, until}: an action, until the page shows its result

  /** `done(answer)` is called after each action, for changes that the feed does not deliver. */
  constructor(actions, label, done = () => {}) {
    this.done = done;
    this.buttons = h("div.buttons", { role: "group", "aria-label": label });
    this.problem = h("p.problem", { role: "alert" });
    this.problem.hidden = true;
    this.element = h("div.actions", {}, this.buttons, this.problem);
    this.made = new Map(actions.map((action) => [action, this.#button(action)]));
    principal().then((who) => {
      if (who && OPERATORS.has(who.scope)) this.buttons.replaceChildren(...this.made.values());
    });
  }

  /** `position` is the last position of the feed; without one, the row is up to date. */
  update(row, position = Infinity) {
    if (this.row && this.row.id !== row.id) {
      this.problem.hidden = true;
      this.#flight = null;
    }
    this.row = row;
    this.position = position;
    if (this.#flight && this.#isOver(this.#flight)) this.#flight = null;
    this.#draw();
  }

  #isOver({ answered, position, until }) {
    return answered && this.position >= position && performance.now() >= until;
  }

  /** `aria-disabled` rather than `disabled`, which would take the keyboard's focus away. */
  #draw() {
    attribute(this.buttons, "aria-busy", this.#flight ? "true" : null);
    for (const [action, button] of this.made) {
      attribute(button, "aria-disabled", this.#flight || !action.offered(this.row) ? "true" : null);
    }
  }

  #button(action) {
    const button = h("button", { type: "button", "aria-disabled": "true" },
      glyph(action.shape), action.question ? `${action.name}…` : action.name);
    button.addEventListener("click", () => {
      if (!button.hasAttribute("aria-disabled")) this.#perform(action);
    });
    return button;
  }

  /** The feed shows what came of it; only a refusal is told here. */
  async #perform(action) {
    const row = this.row;
    const answer = action.question ? await ask(action.question(row)) : "";
    if (answer === null) return;
    this.problem.hidden = true;
    const flight = { answered: false, position: 0, until: performance.now() + AT_LEAST };
    this.#flight = flight;
    this.#draw();
    try {
      const done = await action.act(row, answer);
      flight.position = done?.position ?? 0;
      this.done(done);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      text(this.problem, error.message);
      this.problem.hidden = false;
    } finally {
      flight.answered = true;
      setTimeout(() => this.update(this.row, this.position), AT_LEAST);
      setTimeout(() => this.#giveUp(flight), LONGEST);
    }
  }

  /** Stop waiting for the feed: the action may have changed nothing. */
  #giveUp(flight) {
    if (this.#flight !== flight) return;
    flight.position = 0;
    this.update(this.row, this.position);
  }
}
