// The history of a batch or an upload: a slider over its events, and the state as of each.

import { Refused } from "../api.js";
import { arrange, glyph, h, oncePerFrame, text } from "../dom.js";
import { VirtualList } from "../table.js";
import { batchName, calendar, count } from "../words.js";
import { Events } from "./events.js";
import { eventRow } from "./row.js";
import { Slider } from "./slider.js";
import { told } from "./telling.js";
import { BatchThen, UploadThen } from "./then.js";

const ROW = 40; // pixels; the style sheet knows it too
const NEAR = 20; // rows from the edge of what is loaded, where more is asked for
const LOOK = 1000; // milliseconds between two looks at what is new

export class HistoryPage {
  title = "History";
  section = "batches";

  /** `upload` is null for the history of the whole batch; `at` is the position to begin at. */
  constructor(store, batch, upload, at) {
    this.store = store;
    this.follows = [batch];
    this.ids = { batch, upload };
    this.events = upload ? new Events("uploads", upload) : new Events("batches", batch);
    this.position = at; // null: now, whatever happens
    this.draw = oncePerFrame(() => this.#draw());
    this.#build();
    this.#go(at);
    this.clock = setInterval(() => this.#look(), LOOK);
  }

  close() {
    clearInterval(this.clock);
    this.asking?.abort();
    this.list.close();
  }

  changed({ live }) {
    this.stale ||= live;
    this.draw();
  }

  #build() {
    const { batch, upload } = this.ids;
    this.name = h("h1", {}, "History");
    this.about = h("p.summary");
    this.when = h("p.when");
    this.slider = new Slider({ moved: (position) => this.#slide(position), stepped: (step) => this.#step(step) });
    this.list = new VirtualList({
      label: "Events", rowHeight: ROW, make: eventRow,
      chosen: (id) => id === null ? this.draw() : this.#go(Number(id)),
    });
    this.list.element.addEventListener("scroll", () => this.#fetchNear(), { passive: true });
    this.problem = h("p.problem", { role: "alert" });
    this.batchThen = upload ? null : new BatchThen();
    this.uploadThen = new UploadThen();
    this.data = h("pre.data", { tabindex: 0, "aria-label": "The event as it is recorded" });
    this.record = h("details", {}, h("summary", {}, "As recorded"), this.data);
    this.side = h("aside.then-side", { "aria-label": "As of then" });
    arrange(this.side, [this.batchThen?.element, this.uploadThen.element, this.record].filter(Boolean));
    const raw = `/v1/${upload ? `uploads/${upload}` : `batches/${batch}`}/history?format=ndjson`;
    this.element = h("section.history", {},
      h("p.crumbs", {}, h("a", { href: `#/batches/${batch}` }, glyph("back"), "Batch"),
        h("span.documents", {},
          upload ? h("a", { href: `#/batches/${batch}/history` }, "History of the batch") : null,
          h("a", { href: raw }, "All events (NDJSON)"))),
      h("div.heading", {}, h("div", {}, this.name, this.about), this.when),
      this.slider.element, this.problem,
      h("div.past", {}, h("div.list", {}, this.list.element), this.side));
  }

  /** To a position (null: now): loads what is around it unless it is there. Latest wins. */
  async #go(position) {
    clearTimeout(this.sliding);
    this.position = position;
    this.asking?.abort();
    this.problem.hidden = true;
    if (position === null || !this.events.covers(position)) {
      this.asking = new AbortController();
      try {
        if (!(await this.events.around(position, this.asking.signal))) return;
      } catch (error) {
        if (error.name !== "AbortError") this.#complain(error);
        return;
      }
    }
    this.revealing = true;
    this.draw();
    this.#remember();
  }

  #slide(position) {
    this.position = position;
    this.draw();
    clearTimeout(this.sliding);
    this.sliding = setTimeout(() => this.#go(position), this.events.covers(position) ? 0 : 120);
  }

  async #step(step) {
    const { events } = this;
    if (step === "now") return this.#go(null);
    if (step === "first") return this.#go(events.first);
    // A slider that has just been moved may be ahead of what is loaded.
    if (this.position !== null && !events.covers(this.position)) await this.#go(this.position);
    const [here, way] = [this.#index(), step === "later" ? 1 : -1];
    if (!events.items.length) return;
    const { position } = events.items[here];
    if (!events.items[here + way]) await this.#fetched(step);
    const next = events.items[events.at(position) + way];
    if (next) await this.#go(next.position);
  }

  #index() {
    return this.position === null ? this.events.items.length - 1 : this.events.at(this.position);
  }

  /** More at the edge that the list has been scrolled to; the rows in sight stay where they are. */
  async #fetchNear() {
    const { scrollTop, scrollHeight, clientHeight } = this.list.element;
    if (scrollTop < NEAR * ROW && !this.events.atStart) {
      const added = await this.#fetched("earlier");
      this.#draw();
      this.list.element.scrollTop += added * ROW;
    } else if (scrollTop + clientHeight > scrollHeight - NEAR * ROW && !this.events.atEnd) {
      await this.#fetched("later");
      this.draw();
    }
  }

  /** What was recorded since; a page that shows now moves on with it. */
  async #look() {
    if (!this.stale || !this.events.items.length) return;
    this.stale = false;
    if (await this.#fetched("look")) this.revealing ||= this.position === null;
    this.draw();
  }

  async #fetched(which) {
    try {
      return await this.events[which]();
    } catch (error) {
      this.#complain(error);
      return 0;
    }
  }

  #complain(error) {
    if (!(error instanceof Refused)) throw error;
    this.stale = true; // it is asked for again
    text(this.problem, error.message);
    this.problem.hidden = false;
  }

  /** The address leads back here, to this moment. */
  #remember() {
    const address = `${location.hash.split("?")[0]}${this.position === null ? "" : `?at=${this.position}`}`;
    if (location.hash !== address) history.replaceState(null, "", address);
  }

  #draw() {
    const { events, ids } = this;
    const batch = this.store.batches.get(ids.batch);
    const path = ids.upload ? this.#pathOf(ids.upload) : null;
    text(this.about, path ?? (batch ? batchName(batch) : ""));
    this.title = `History of ${this.about.textContent}`;
    if (!events.items.length) return;
    this.list.show(events.items.map((item) => ({
      ...item, id: String(item.position), path: item.stream === ids.batch || ids.upload ? "" : this.#pathOf(item.stream),
    })));
    const index = this.#index();
    const item = events.items[index];
    this.list.select(String(item.position));
    if (this.revealing) this.list.reveal(String(item.position));
    this.revealing = false;
    this.#drawMoment(item, index);
    if (this.position === null || this.events.covers(this.position)) this.#drawThen(item);
  }

  #drawMoment(item, index) {
    const { events, position } = this;
    const said = told(item);
    const words = `${said.word}${said.details ? `: ${said.details}` : ""}, ${calendar(item.at)}`;
    text(this.when, `${calendar(item.at)}, position ${count(item.position)}${position === null ? " (now)" : ""}`);
    this.slider.show({
      first: events.first ?? item.position, last: events.last, position: position ?? events.last, said: words,
      atFirst: index === 0 && events.atStart, atNow: position === null,
    });
  }

  #drawThen(item) {
    const { batch, upload } = this.ids;
    this.batchThen?.show(batch, item.position);
    if (upload || item.stream !== batch) this.uploadThen.show(upload ?? item.stream, item.position);
    else this.uploadThen.hide();
    text(this.data, JSON.stringify(item, null, 2));
  }

  #pathOf(id) {
    return this.store.uploads.get(id)?.path ?? "";
  }
}
