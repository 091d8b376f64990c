// The activity of a batch can change with time alone: no frame is sent then, so the page polls.

import { get, RequestError } from "./api.js";

const POLL_INTERVAL = 1000; // milliseconds between two checks
const RETRY_AFTER = 5000; // milliseconds before a batch is requested again (clocks may differ)
const MAX_REQUESTS = 20; // per check

export class ActivityPoll {
  #requestedAt = new Map();
  #busy = false;

  /** `changed(change)` is called for each row whose activity has changed. */
  constructor(store, changed) {
    this.store = store;
    this.changed = changed;
    setInterval(() => this.#poll(), POLL_INTERVAL);
  }

  async #poll() {
    if (this.#busy || document.visibilityState !== "visible") return;
    this.#busy = true;
    try {
      for (const id of this.#due()) await this.#refresh(id);
    } finally {
      this.#busy = false;
    }
  }

  #due() {
    const now = Date.now();
    for (const [id, at] of this.#requestedAt) if (now - at > RETRY_AFTER) this.#requestedAt.delete(id);
    return [...this.store.batches.values()]
      .filter((batch) => batch.activity_until && Date.parse(batch.activity_until) <= now && !this.#requestedAt.has(batch.id))
      .slice(0, MAX_REQUESTS).map(({ id }) => id);
  }

  async #refresh(id) {
    this.#requestedAt.set(id, Date.now());
    try {
      const change = this.store.refresh(await get(`/v1/batches/${id}`));
      if (change) this.changed(change);
    } catch (error) {
      if (!(error instanceof RequestError)) throw error; // the feed reports the lost connection
    }
  }
}
