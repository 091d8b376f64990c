// List of any length that creates elements only for visible rows.

import { attribute, h, oncePerFrame } from "./dom.js";

const OVERSCAN_ROWS = 6; // rows rendered above and below the visible ones
const REVEAL_MARGIN = 3; // rows kept visible around a revealed one

export class VirtualList {
  #pool = new Map();
  #rows = [];
  #index = new Map();

  /** `make()` returns `{element, update(row)}`; `onSelect(id)` is called for each selection (null: none). */
  constructor({ label, rowHeight, make, onSelect }) {
    this.rowHeight = rowHeight;
    this.make = make;
    this.onSelect = onSelect;
    this.selected = null;
    this.track = h("div.track");
    this.element = h("div.virtual", {
      role: "listbox", tabindex: 0, "aria-label": label,
      onkeydown: (event) => this.#key(event),
      onclick: (event) => this.#click(event),
    }, this.track);
    this.draw = oncePerFrame(() => this.#draw());
    this.element.addEventListener("scroll", this.draw, { passive: true });
    this.resizing = new ResizeObserver(this.draw);
    this.resizing.observe(this.element);
  }

  close() {
    this.resizing.disconnect();
  }

  show(rows) {
    this.#rows = rows;
    this.#index = new Map(rows.map((row, index) => [row.id, index]));
    this.track.style.blockSize = `${rows.length * this.rowHeight}px`;
    this.draw();
  }

  select(id) {
    this.selected = id;
    this.draw();
  }

  /** Scroll as little as possible to show the row and its neighbours. */
  reveal(id) {
    const index = this.#index.get(id);
    if (index === undefined) return;
    this.#reveal(Math.max(0, index - REVEAL_MARGIN));
    this.#reveal(Math.min(this.#rows.length - 1, index + REVEAL_MARGIN));
  }

  #draw() {
    const { scrollTop, clientHeight } = this.element;
    const first = Math.max(0, Math.floor(scrollTop / this.rowHeight) - OVERSCAN_ROWS);
    const last = Math.min(this.#rows.length, first + Math.ceil(clientHeight / this.rowHeight) + 2 * OVERSCAN_ROWS);
    const wanted = new Set();
    for (let index = first; index < last; index++) wanted.add(this.#rows[index].id);
    const spare = [...this.#pool].filter(([id]) => !wanted.has(id));
    for (let index = first; index < last; index++) this.#place(index, spare);
    for (const [id, item] of spare) {
      this.#pool.delete(id);
      item.element.remove();
    }
    const active = this.#pool.get(this.selected);
    attribute(this.element, "aria-activedescendant", active ? active.element.id : null);
  }

  /** Position the element of a row: its own, a spare one, or a new one. */
  #place(index, spare) {
    const row = this.#rows[index];
    let item = this.#pool.get(row.id);
    if (!item) {
      const free = spare.pop();
      if (free) this.#pool.delete(free[0]);
      item = free ? free[1] : this.#createItem();
      this.#pool.set(row.id, item);
      item.element.dataset.id = row.id;
      item.element.id = `row-${row.id}`;
    }
    item.element.style.transform = `translateY(${index * this.rowHeight}px)`;
    attribute(item.element, "aria-posinset", index + 1);
    attribute(item.element, "aria-setsize", this.#rows.length);
    attribute(item.element, "aria-selected", String(row.id === this.selected));
    item.update(row);
  }

  #createItem() {
    const item = this.make();
    attribute(item.element, "role", "option");
    item.element.classList.add("virtual-row");
    this.track.append(item.element);
    return item;
  }

  #click(event) {
    const row = event.target.closest("[role=option]");
    if (row) this.#choose(row.dataset.id);
  }

  #key(event) {
    const page = Math.max(1, Math.floor(this.element.clientHeight / this.rowHeight) - 1);
    const here = this.#index.get(this.selected) ?? -1;
    const there = {
      ArrowDown: here + 1, ArrowUp: here - 1, PageDown: here + page, PageUp: here - page,
      Home: 0, End: this.#rows.length - 1,
    }[event.key];
    if (event.key === "Escape") this.#choose(null);
    if (there === undefined || !this.#rows.length) return;
    event.preventDefault();
    const index = Math.min(this.#rows.length - 1, Math.max(0, there));
    this.#choose(this.#rows[index].id);
    this.#reveal(index);
  }

  #reveal(index) {
    const top = index * this.rowHeight;
    const box = this.element;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top + this.rowHeight > box.scrollTop + box.clientHeight)
      box.scrollTop = top + this.rowHeight - box.clientHeight;
  }

  #choose(id) {
    this.select(id);
    this.onSelect(id);
  }
}
