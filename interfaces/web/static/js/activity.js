// The activity of a batch can change with time alone: no frame is sent then, so the page polls.

import { get, Refused } from "./api.js";

const LOOK = 1000; // milliseconds between two looks at which are due
const AGAIN = 5000; // milliseconds until one is asked for again, as where clocks differ
const MOST = 20; // asked for at a look

export class ActivityClock {
  #asked = new Map();
  #busy = false;

  /** `changed(change)` is called for each row whose activity has changed. */
  constructor(store, changed) {
    this.store = store;
    this.changed = changed;
    setInterval(() => this.#look(), LOOK);
  }

  async #look() {
    if (this.#busy || document.visibilityState !== "visible") return;
    this.#busy = true;
    try {
      for (const id of this.#due()) await this.#ask(id);
    } finally {
      this.#busy = false;
    }
  }

  #due() {
    const now = Date.now();
    for (const [id, at] of this.#asked) if (now - at > AGAIN) this.#asked.delete(id);
    return [...this.store.batches.values()]
      .filter((batch) => batch.activity_until && Date.parse(batch.activity_until) <= now && !this.#asked.has(batch.id))
      .slice(0, MOST).map(({ id }) => id);
  }

  async #ask(id) {
    this.#asked.set(id, Date.now());
    try {
      const change = this.store.refresh(await get(`/v1/batches/${id}`));
      if (change) this.changed(change);
    } catch (error) {
      if (!(error instanceof Refused)) throw error; // the feed reports the lost connection
    }
  }
}
