// Many files on their way into one batch: several at once, to be paused, and to go on after a cut.

import { create, newKey, post, Refused } from "../api.js";
import { declare } from "./manifest.js";
import { forget, remember } from "./memory.js";
import { persist, Trouble } from "./trouble.js";
import { append, offsetOf } from "./tus.js";

const AT_ONCE = 4; // files; a browser opens six connections to a server
const OVER = new Set([401, 403]); // statuses that hold for every file

export class Sending {
  #controller = null;
  #next = 0;
  #key = newKey();

  /** `plan` is {files, batch or null, label, root, seal}; `changed()` hears of every step. */
  constructor(plan, changed) {
    this.plan = plan;
    this.changed = changed;
    this.batch = plan.batch;
    this.state = "paused";
    this.problem = null; // what keeps all of it from going on, in words
    this.hitch = null; // what is being waited out
    this.items = plan.files.map(({ path, file, problem }, index) => ({
      id: String(index), path, file, size: file?.size ?? 0, sent: 0, offset: null, upload: null,
      state: problem ? "refused" : "declaring", message: problem ?? null,
    }));
    this.total = this.items.reduce((sum, { size }) => sum + size, 0);
  }

  /** Starts, or goes on after a pause; ends when nothing more can be done. */
  async run() {
    this.#controller = new AbortController();
    const { signal } = this.#controller;
    this.#is("preparing", null);
    try {
      await this.#begin(signal);
      this.#is("sending", null);
      this.#next = 0;
      const lanes = await Promise.allSettled(Array.from({ length: AT_ONCE }, () => this.#lane(signal)));
      const broken = lanes.map(({ reason }) => reason).filter(Boolean);
      if (broken.length) throw broken.find(({ name }) => name !== "AbortError") ?? broken[0];
      if (this.plan.seal && !this.refused) await this.seal(signal);
      this.#is("done", null);
      if (!this.refused) forget(this.batch);
    } catch (error) {
      this.#controller.abort();
      const expected = error instanceof Refused || error instanceof Trouble;
      this.#is("paused", expected ? error.message : null);
      if (!expected && error.name !== "AbortError") throw error;
    } finally {
      this.hitch = null;
    }
  }

  pause() {
    this.#controller?.abort();
  }

  get refused() {
    return this.items.some(({ state }) => state === "refused");
  }

  /** Everything that was refused is tried once more. */
  again() {
    for (const item of this.items) {
      if (item.state === "refused" && item.file) Object.assign(item, { state: "declaring", message: null });
    }
    return this.run();
  }

  async seal(signal = new AbortController().signal) {
    await persist(() => post("batches", this.batch, "seal"), signal, (error) => this.#waits(error));
    forget(this.batch);
    this.sealed = true;
    this.changed();
  }

  async #begin(signal) {
    const waiting = (error) => this.#waits(error);
    if (!this.batch) {
      const form = { label: this.plan.label };
      const answer = await persist(() => create("/v1/batches", form, this.#key), signal, waiting);
      this.batch = answer.id;
    }
    const { label, root } = this.plan;
    remember({ batch: this.batch, label, root, files: this.items.length, bytes: this.total });
    const fresh = this.items.filter(({ state }) => state === "declaring");
    if (fresh.length) await declare(this.batch, fresh, signal, { waiting, changed: this.changed });
  }

  /** One file after the other, until none waits. */
  async #lane(signal) {
    while (this.#next < this.items.length) {
      const item = this.items[this.#next++];
      if (item.state !== "waiting") continue;
      try {
        this.#becomes(item, "sending");
        await persist(() => this.#send(item, signal), signal, (error) => this.#waits(error, item));
        this.#becomes(item, "sent");
      } catch (error) {
        if (!(error instanceof Trouble) || OVER.has(error.status)) {
          this.#becomes(item, "waiting");
          item.offset = null;
          if (error.name !== "AbortError") this.#controller.abort();
          throw error;
        }
        item.message = error.message;
        this.#becomes(item, "refused");
      }
    }
  }

  async #send(item, signal) {
    let { offset } = item;
    item.offset = null; // after a failure only the server knows
    offset ??= await offsetOf(item.upload, signal);
    do { // at least once: an empty file is there when it was said so
      item.sent = offset;
      try {
        offset = await append(item.upload, item.file, offset, signal, (sent) => { item.sent = sent; this.changed(); });
      } catch (error) {
        throw error.status === 0 && !(await isReadable(item.file)) ? new Trouble(CHANGED, 400) : error;
      }
    } while (offset < item.size);
    item.sent = item.size;
  }

  #waits(error, item = null) {
    this.hitch = error?.message ?? null;
    if (item) item.message = this.hitch;
    this.changed();
  }

  #becomes(item, state) {
    item.state = state;
    if (state !== "refused") item.message = null;
    this.changed();
  }

  #is(state, problem) {
    this.state = state;
    this.problem = problem;
    this.changed();
  }
}

const CHANGED = "The file was changed or removed after it was chosen: choose it again.";

/** A browser does not tell a file it cannot read from a line that broke. */
async function isReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}
