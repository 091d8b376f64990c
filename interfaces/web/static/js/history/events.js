// The recorded events around a moment: a window that moves over a history of any length.

import { get } from "../api.js";

const PAGE = 200; // events asked for at once
const MOST = 1000; // events kept
const END = `before=${Number.MAX_SAFE_INTEGER}`;

export class Events {
  #generation = 0;
  #loading = false;

  /** `kind` is batches or uploads. */
  constructor(kind, id) {
    this.path = `/v1/${kind}/${id}/history`;
    this.items = [];
    this.first = null; // position of the first event of all
    this.last = null; // and of the last, as far as is known
    this.atStart = false;
    this.atEnd = false;
  }

  /** Whether it is known here which event is the last at or before a position. */
  covers(position) {
    if (!this.items.length) return false;
    return (this.atStart || this.items[0].position <= position)
      && (this.atEnd || position <= this.items.at(-1).position);
  }

  /** The index of the last event at or before a position; 0 where none is. */
  at(position) {
    let [low, high] = [0, this.items.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.items[middle].position <= position) low = middle + 1;
      else high = middle;
    }
    return Math.max(0, low - 1);
  }

  /** Moves the window to a position, or to the end. Whether it is where it was asked to be. */
  async around(position, signal) {
    const generation = ++this.#generation;
    const earlier = position === null ? END : `before=${position + 1}`;
    const [before, after, start, end] = await Promise.all([
      this.#page(earlier, signal),
      position === null ? { items: [], next: null } : this.#page(`after=${position}`, signal),
      this.first === null ? get(`${this.path}?after=0&limit=1`, signal) : null,
      this.last === null ? get(`${this.path}?${END}&limit=1`, signal) : null,
    ]);
    if (generation !== this.#generation) return false;
    this.#take([...before.items, ...after.items]);
    this.atStart = before.next === null;
    this.atEnd = after.next === null;
    this.first = start?.items[0]?.position ?? this.first;
    this.last = Math.max(this.last, end?.items[0]?.position ?? 0);
    return true;
  }

  /** Learns what was recorded since; returns how many events came into the window. */
  async look() {
    if (this.atEnd) return this.later();
    const { items } = await get(`${this.path}?${END}&limit=1`);
    this.last = Math.max(this.last, items[0]?.position ?? 0);
    return 0;
  }

  /** Goes on at the beginning of the window; returns how many events were added. */
  async earlier() {
    if (this.atStart) return 0;
    return this.#more(`before=${this.items[0]?.position ?? 1}`, (page) => {
      this.#take([...page.items, ...this.items].slice(0, MOST));
      this.atStart = page.next === null;
      this.atEnd &&= this.items.at(-1).position === this.last;
    });
  }

  /** Goes on at its end, also with what was recorded since. */
  async later() {
    return this.#more(`after=${this.items.at(-1)?.position ?? 0}`, (page) => {
      const all = [...this.items, ...page.items];
      this.atStart &&= all.length <= MOST;
      this.#take(all.slice(-MOST));
      this.atEnd = page.next === null;
    });
  }

  async #more(query, take) {
    if (this.#loading) return 0;
    this.#loading = true;
    const generation = this.#generation;
    try {
      const page = await this.#page(query);
      if (generation !== this.#generation) return 0;
      take(page);
      return page.items.length;
    } finally {
      this.#loading = false;
    }
  }

  #page(query, signal) {
    return get(`${this.path}?${query}&limit=${PAGE}`, signal);
  }

  #take(items) {
    this.items = items;
    this.last = Math.max(this.last ?? 0, items.at(-1)?.position ?? 0);
  }
}
