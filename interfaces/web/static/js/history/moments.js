// Where in a history the page stands: moved to a position, from event to event, or along with now.

const SETTLES = 120; // milliseconds that a slider rests before what is around it is asked for

export class Moments {
  #asking = null;
  #sliding = null;
  #stale = false;

  /** `moved(arrived)` hears of each move, `failed(error)` of a question that was not answered. */
  constructor(events, { moved, failed }) {
    this.events = events;
    this.moved = moved;
    this.failed = failed;
    this.position = null; // now, whatever happens
  }

  close() {
    clearTimeout(this.#sliding);
    this.#asking?.abort();
    this.moved = () => {}; // whatever still arrives is for nobody
  }

  /** The index of the event whose state is shown. */
  get index() {
    return this.position === null ? this.events.items.length - 1 : this.events.at(this.position);
  }

  /** Whether what is around here has been loaded. */
  get known() {
    return this.position === null || this.events.covers(this.position);
  }

  /** To a position (null: now): loads what is around it unless it is there. The latest wins. */
  async go(position) {
    clearTimeout(this.#sliding);
    this.position = position;
    this.#asking?.abort();
    if (position === null || !this.events.covers(position)) {
      this.#asking = new AbortController();
      try {
        if (!(await this.events.around(position, this.#asking.signal))) return;
      } catch (error) {
        if (error.name !== "AbortError") this.#fail(error);
        return;
      }
    }
    this.moved(true);
  }

  /** Along with the slider, which may move on before anything was loaded. */
  slide(position) {
    this.position = position;
    this.moved(false);
    clearTimeout(this.#sliding);
    this.#sliding = setTimeout(() => this.go(position), this.known ? 0 : SETTLES);
  }

  /** first, earlier, later or now. */
  async step(step) {
    const { events } = this;
    if (step === "now") return this.go(null);
    if (step === "first") return this.go(events.first);
    // A slider that has just been moved may be ahead of what is loaded.
    if (!this.known) await this.go(this.position);
    if (!events.items.length) return;
    const way = step === "later" ? 1 : -1;
    const { position } = events.items[this.index];
    if (!events.items[this.index + way]) await this.fetch(step);
    const next = events.items[events.at(position) + way];
    if (next) await this.go(next.position);
  }

  /** Loads more: earlier, later, or by `look` what was recorded since. How many events came. */
  async fetch(which) {
    try {
      return await this.events[which]();
    } catch (error) {
      this.#fail(error);
      return 0;
    }
  }

  /** Something was recorded, of this or of others. */
  changed() {
    this.#stale = true;
  }

  /** Fetches what was recorded since, if anything was; a page at now moves on with it. */
  async look() {
    if (!this.#stale || !this.events.items.length) return;
    this.#stale = false;
    const came = await this.fetch("look");
    this.moved(came > 0 && this.position === null);
  }

  #fail(error) {
    this.#stale = true; // it is asked for again
    this.failed(error);
  }
}
