// Asks again and again while the page is looked at, for what no feed tells.

import { Refused } from "./api.js";

export class Poll {
  #timer = null;
  #closed = false;
  #asking = false;

  /** `ask()` gets what there is and draws it; `failed(message)` hears of a refusal, null of its end. */
  constructor(ask, failed, seconds) {
    this.ask = ask;
    this.failed = failed;
    this.pause = seconds * 1000;
    this.seen = () => { if (document.visibilityState === "visible") this.now(); };
    document.addEventListener("visibilitychange", this.seen);
    this.now();
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    document.removeEventListener("visibilitychange", this.seen);
  }

  async now() {
    clearTimeout(this.#timer);
    if (this.#asking || this.#closed) return;
    this.#asking = true;
    try {
      await this.ask();
      if (!this.#closed) this.failed(null);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (!this.#closed) this.failed(error.message);
    } finally {
      this.#asking = false;
      clearTimeout(this.#timer);
      if (!this.#closed && document.visibilityState === "visible") this.#timer = setTimeout(() => this.now(), this.pause);
    }
  }
}
