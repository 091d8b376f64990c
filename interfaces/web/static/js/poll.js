// Polling while the page is visible, for data that the feed does not deliver.

import { RequestError } from "./api.js";

export class Poll {
  #timer = null;
  #closed = false;
  #isRefreshing = false;

  /** `refresh()` loads and draws; `failed(message)` is called with each error, and with null after a success. */
  constructor(refresh, failed, seconds) {
    this.refresh = refresh;
    this.failed = failed;
    this.pause = seconds * 1000;
    this.onVisible = () => { if (document.visibilityState === "visible") this.now(); };
    document.addEventListener("visibilitychange", this.onVisible);
    this.now();
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    document.removeEventListener("visibilitychange", this.onVisible);
  }

  async now() {
    clearTimeout(this.#timer);
    if (this.#isRefreshing || this.#closed) return;
    this.#isRefreshing = true;
    try {
      await this.refresh();
      if (!this.#closed) this.failed(null);
    } catch (error) {
      if (!(error instanceof RequestError)) throw error;
      if (!this.#closed) this.failed(error.message);
    } finally {
      this.#isRefreshing = false;
      clearTimeout(this.#timer);
      if (!this.#closed && document.visibilityState === "visible") this.#timer = setTimeout(() => this.now(), this.pause);
    }
  }
}
