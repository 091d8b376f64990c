// Current position in a history: a fixed event, or the latest one.

const SLIDER_REST_TIME = 120; // milliseconds the slider must rest before events are loaded

export class Timeline {
  #request = null;
  #slideTimer = null;
  #stale = false;

  /** `moved(loaded)` is called after each move, `failed(error)` after a failed request. */
  constructor(events, { moved, failed }) {
    this.events = events;
    this.moved = moved;
    this.failed = failed;
    this.position = null; // null: the latest event
  }

  close() {
    clearTimeout(this.#slideTimer);
    this.#request?.abort();
    this.moved = () => {}; // ignore responses that are still under way
  }

  /** Index of the event whose state is shown. */
  get index() {
    return this.position === null ? this.events.items.length - 1 : this.events.indexAt(this.position);
  }

  /** Whether the events around the position are loaded. */
  get isLoaded() {
    return this.position === null || this.events.covers(this.position);
  }

  /** Go to a position (null: the latest event) and load the events around it. The latest call wins. */
  async go(position) {
    clearTimeout(this.#slideTimer);
    this.position = position;
    this.#request?.abort();
    if (position === null || !this.events.covers(position)) {
      this.#request = new AbortController();
      try {
        if (!(await this.events.loadAround(position, this.#request.signal))) return;
      } catch (error) {
        if (error.name !== "AbortError") this.#fail(error);
        return;
      }
    }
    this.moved(true);
  }

  /** Follow the slider, which may move on before events are loaded. */
  slide(position) {
    this.position = position;
    this.moved(false);
    clearTimeout(this.#slideTimer);
    this.#slideTimer = setTimeout(() => this.go(position), this.isLoaded ? 0 : SLIDER_REST_TIME);
  }

  /** Take a step: first, earlier, later or now. */
  async step(step) {
    const { events } = this;
    if (step === "now") return this.go(null);
    if (step === "first") return this.go(events.first);
    // A slider that has just been moved may be ahead of what is loaded.
    if (!this.isLoaded) await this.go(this.position);
    if (!events.items.length) return;
    const direction = step === "later" ? 1 : -1;
    const { position } = events.items[this.index];
    if (!events.items[this.index + direction]) await this.fetch(step === "later" ? "loadLater" : "loadEarlier");
    const next = events.items[events.indexAt(position) + direction];
    if (next) await this.go(next.position);
  }

  /** Call loadEarlier, loadLater or loadNew of the window; returns how many events were added. */
  async fetch(method) {
    try {
      return await this.events[method]();
    } catch (error) {
      this.#fail(error);
      return 0;
    }
  }

  /** Note that new events were recorded, of this stream or another. */
  markStale() {
    this.#stale = true;
  }

  /** Load new events after markStale(); at the latest event, move on with them. */
  async refresh() {
    if (!this.#stale || !this.events.items.length) return;
    this.#stale = false;
    const added = await this.fetch("loadNew");
    this.moved(added > 0 && this.position === null);
  }

  #fail(error) {
    this.#stale = true; // load again at the next refresh
    this.failed(error);
  }
}
