// Operator actions on batches and uploads, offered by state; the server may still reject one.

import { OPERATOR_SCOPES, post, principal, RequestError } from "./api.js";
import { openDialog } from "./dialog.js";
import { attribute, glyph, h, text } from "./dom.js";
import { batchName, files } from "./format.js";

const MIN_DISABLED = 800; // milliseconds that buttons stay disabled: a double click is one click
const MAX_FEED_WAIT = 10_000; // milliseconds to wait after a response for the feed to deliver the change

const RUNNING = new Set(["open", "sealed"]);
const ENDED = new Set(["completed", "failed", "quarantined", "rejected", "cancelled", "expired", "erased"]);
const NOT_REOPENED = new Set(["cancelled", "expired"]); // outcomes that a retry does not reopen

const BATCH = [
  {
    name: "Retry failed", icon: "retry",
    isAvailable: (batch) => batch.counts.failed > 0 && batch.state !== "cancelling" && !NOT_REOPENED.has(batch.outcome),
    perform: (batch) => post("batches", batch.id, "retry"),
  },
  {
    name: "Pause", icon: "paused",
    isAvailable: (batch) => RUNNING.has(batch.state) && !batch.paused,
    perform: (batch) => post("batches", batch.id, "pause"),
  },
  {
    name: "Resume", icon: "processing",
    isAvailable: (batch) => RUNNING.has(batch.state) && batch.paused,
    perform: (batch) => post("batches", batch.id, "resume"),
  },
  {
    name: "Priority", icon: "transfer",
    isAvailable: (batch) => RUNNING.has(batch.state),
    question: (batch) => ({
      title: `Priority of ${batchName(batch)}`, confirm: "Set priority",
      text: "Batches with a higher priority are processed first. The default is 0.",
      field: { label: "Priority, -100 to 100", type: "number", min: -100, max: 100, step: 1, required: true, value: batch.priority },
    }),
    perform: (batch, answer) => post("batches", batch.id, "priority", { priority: Number(answer) }),
  },
  {
    name: "Seal", icon: "done",
    isAvailable: (batch) => batch.state === "open" && batch.uploads > 0,
    question: (batch) => ({
      title: `Seal ${batchName(batch)}?`, confirm: "Seal",
      text: "No more files can be added. The batch completes when all its files are processed.",
    }),
    perform: (batch) => post("batches", batch.id, "seal"),
  },
  {
    name: "Cancel", icon: "stopped",
    isAvailable: (batch) => RUNNING.has(batch.state),
    question: (batch) => ({
      title: `Cancel ${batchName(batch)}?`, confirm: "Cancel the batch",
      text: `Of its ${files(batch.uploads)}, all that have not ended are cancelled. This cannot be undone.`,
      field: { label: "Reason, kept in the history", required: true, maxlength: 500 },
    }),
    perform: (batch, reason) => post("batches", batch.id, "cancel", { reason }),
  },
];

const UPLOAD = [
  {
    name: "Retry", icon: "retry",
    isAvailable: (upload) => upload.state === "failed",
    perform: (upload) => post("uploads", upload.id, "retry"),
  },
  {
    name: "Release", icon: "done",
    isAvailable: (upload) => upload.state === "quarantined",
    question: (upload) => ({
      title: `Release ${upload.path}?`, confirm: "Release",
      text: "The upload is completed despite the result of the step that quarantined it.",
      field: { label: "Reason, kept in the history", required: true, maxlength: 500 },
    }),
    perform: (upload, reason) => post("uploads", upload.id, "release", { reason }),
  },
  {
    name: "Cancel", icon: "stopped",
    isAvailable: (upload) => !ENDED.has(upload.state),
    question: (upload) => ({
      title: `Cancel ${upload.path}?`, confirm: "Cancel the upload",
      text: "A running attempt is stopped. This cannot be undone.",
      field: { label: "Reason, kept in the history", required: true, maxlength: 500 },
    }),
    perform: (upload, reason) => post("uploads", upload.id, "cancel", { reason }),
  },
];

export const batchActions = () => new Actions(BATCH, "Batch actions");
export const uploadActions = () => new Actions(UPLOAD, "Upload actions");

/**
 * One button per action, at a fixed position: an unavailable action is disabled, so that a second
 * click never hits another action. Call `update(row, position)` when the row changes. Viewers see
 * no buttons.
 */
export class Actions {
  #inFlight = null; // {answered, position, until}: an action, until the page shows its result

  /** `done(answer)` is called after each action, for changes that the feed does not deliver. */
  constructor(actions, label, done = () => {}) {
    this.done = done;
    this.buttons = h("div.buttons", { role: "group", "aria-label": label });
    this.problem = h("p.problem", { role: "alert" });
    this.problem.hidden = true;
    this.element = h("div.actions", {}, this.buttons, this.problem);
    this.buttonOf = new Map(actions.map((action) => [action, this.#button(action)]));
    principal().then((who) => {
      if (who && OPERATOR_SCOPES.has(who.scope)) this.buttons.replaceChildren(...this.buttonOf.values());
    });
  }

  /** `position` is the last position of the feed; without one, the row is up to date. */
  update(row, position = Infinity) {
    if (this.row && this.row.id !== row.id) {
      this.problem.hidden = true;
      this.#inFlight = null;
    }
    this.row = row;
    this.position = position;
    if (this.#inFlight && this.#isSettled(this.#inFlight)) this.#inFlight = null;
    this.#draw();
  }

  #isSettled({ answered, position, until }) {
    return answered && this.position >= position && performance.now() >= until;
  }

  /** `aria-disabled` rather than `disabled`, which would take the keyboard's focus away. */
  #draw() {
    attribute(this.buttons, "aria-busy", this.#inFlight ? "true" : null);
    for (const [action, button] of this.buttonOf) {
      attribute(button, "aria-disabled", this.#inFlight || !action.isAvailable(this.row) ? "true" : null);
    }
  }

  #button(action) {
    const button = h("button", { type: "button", "aria-disabled": "true" },
      glyph(action.icon), action.question ? `${action.name}…` : action.name);
    button.addEventListener("click", () => {
      if (!button.hasAttribute("aria-disabled")) this.#perform(action);
    });
    return button;
  }

  /** Run an action. The feed delivers its result; only errors are shown here. */
  async #perform(action) {
    const row = this.row;
    const answer = action.question ? await openDialog(action.question(row)) : "";
    if (answer === null) return;
    this.problem.hidden = true;
    const flight = { answered: false, position: 0, until: performance.now() + MIN_DISABLED };
    this.#inFlight = flight;
    this.#draw();
    try {
      const done = await action.perform(row, answer);
      flight.position = done?.position ?? 0;
      this.done(done);
    } catch (error) {
      if (!(error instanceof RequestError)) throw error;
      text(this.problem, error.message);
      this.problem.hidden = false;
    } finally {
      flight.answered = true;
      setTimeout(() => this.update(this.row, this.position), MIN_DISABLED);
      setTimeout(() => this.#stopWaiting(flight), MAX_FEED_WAIT);
    }
  }

  /** Stop waiting for the feed: the action may have changed nothing. */
  #stopWaiting(flight) {
    if (this.#inFlight !== flight) return;
    flight.position = 0;
    this.update(this.row, this.position);
  }
}
