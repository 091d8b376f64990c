// Loaded part of a history: a window of events around a position.

import { get } from "../api.js";

const PAGE_SIZE = 200; // events per request
const MAX_EVENTS = 1000; // events kept in memory
const END = `before=${Number.MAX_SAFE_INTEGER}`;

export class EventWindow {
  #generation = 0;
  #loading = false;

  /** `kind` is batches or uploads. */
  constructor(kind, id) {
    this.path = `/v1/${kind}/${id}/history`;
    this.items = [];
    this.first = null; // position of the first event of all
    this.last = null; // and of the last known one
    this.atStart = false;
    this.atEnd = false;
  }

  /** Return whether the last event at or before a position is loaded. */
  covers(position) {
    if (!this.items.length) return false;
    return (this.atStart || this.items[0].position <= position)
      && (this.atEnd || position <= this.items.at(-1).position);
  }

  /** Return the index of the last event at or before a position, or 0. */
  indexAt(position) {
    let [low, high] = [0, this.items.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.items[middle].position <= position) low = middle + 1;
      else high = middle;
    }
    return Math.max(0, low - 1);
  }

  /** Load the window around a position (null: the end). Returns false if a later call replaced this one. */
  async loadAround(position, signal) {
    const generation = ++this.#generation;
    const earlier = position === null ? END : `before=${position + 1}`;
    const [before, after, start, end] = await Promise.all([
      this.#page(earlier, signal),
      position === null ? { items: [], next: null } : this.#page(`after=${position}`, signal),
      this.first === null ? get(`${this.path}?after=0&limit=1`, signal) : null,
      this.last === null ? get(`${this.path}?${END}&limit=1`, signal) : null,
    ]);
    if (generation !== this.#generation) return false;
    this.#setItems([...before.items, ...after.items]);
    this.atStart = before.next === null;
    this.atEnd = after.next === null;
    this.first = start?.items[0]?.position ?? this.first;
    this.last = Math.max(this.last, end?.items[0]?.position ?? 0);
    return true;
  }

  /** Load new events; returns how many were added to the window. */
  async loadNew() {
    if (this.atEnd) return this.loadLater();
    const { items } = await get(`${this.path}?${END}&limit=1`);
    this.last = Math.max(this.last, items[0]?.position ?? 0);
    return 0;
  }

  /** Extend the window at its start; returns how many events were added. */
  async loadEarlier() {
    if (this.atStart) return 0;
    return this.#more(`before=${this.items[0]?.position ?? 1}`, (page) => {
      this.#setItems([...page.items, ...this.items].slice(0, MAX_EVENTS));
      this.atStart = page.next === null;
      this.atEnd &&= this.items.at(-1).position === this.last;
    });
  }

  /** Extend the window at its end; returns how many events were added. */
  async loadLater() {
    return this.#more(`after=${this.items.at(-1)?.position ?? 0}`, (page) => {
      const all = [...this.items, ...page.items];
      this.atStart &&= all.length <= MAX_EVENTS;
      this.#setItems(all.slice(-MAX_EVENTS));
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
    return get(`${this.path}?${query}&limit=${PAGE_SIZE}`, signal);
  }

  #setItems(items) {
    this.items = items;
    this.last = Math.max(this.last ?? 0, items.at(-1)?.position ?? 0);
  }
}
