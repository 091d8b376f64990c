// The history of a batch or an upload: a slider over its events, and the state as of each.

import { Refused } from "../api.js";
import { arrange, glyph, h, oncePerFrame, text } from "../dom.js";
import { VirtualList } from "../table.js";
import { batchName, calendar, count } from "../words.js";
import { Events } from "./events.js";
import { Moments } from "./moments.js";
import { eventRow } from "./row.js";
import { Slider } from "./slider.js";
import { lookOf } from "./event-looks.js";
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
    this.moments = new Moments(this.events, {
      moved: (arrived) => this.#moved(arrived), failed: (error) => this.#complain(error),
    });
    this.draw = oncePerFrame(() => this.#draw());
    this.#build();
    this.moments.go(at);
    this.clock = setInterval(() => this.moments.look(), LOOK);
  }

  close() {
    clearInterval(this.clock);
    this.moments.close();
    this.list.close();
  }

  changed({ live }) {
    if (live) this.moments.changed();
    this.draw();
  }

  #build() {
    const { batch, upload } = this.ids;
    const { moments } = this;
    this.name = h("h1", {}, "History");
    this.about = h("p.summary");
    this.when = h("p.when");
    this.slider = new Slider({ moved: (position) => moments.slide(position), stepped: (step) => moments.step(step) });
    this.list = new VirtualList({
      label: "Events", rowHeight: ROW, make: eventRow,
      chosen: (id) => (id === null ? this.draw() : moments.go(Number(id))),
    });
    this.list.element.addEventListener("scroll", () => this.#fetchNear(), { passive: true });
    this.problem = h("p.problem", { role: "alert" });
    const raw = `/v1/${upload ? `uploads/${upload}` : `batches/${batch}`}/history?format=ndjson`;
    this.element = h("section.history", {},
      h("p.crumbs", {}, h("a", { href: `#/batches/${batch}` }, glyph("back"), "Batch"),
        h("span.documents", {},
          upload ? h("a", { href: `#/batches/${batch}/history` }, "History of the batch") : null,
          h("a", { href: raw }, "All events (NDJSON)"))),
      h("div.heading", {}, h("div", {}, this.name, this.about), this.when),
      this.slider.element, this.problem,
      h("div.past", {}, h("div.list", {}, this.list.element), this.#side()));
  }

  #side() {
    this.batchThen = this.ids.upload ? null : new BatchThen();
    this.uploadThen = new UploadThen();
    this.data = h("pre.data", { tabindex: 0, "aria-label": "Recorded event" });
    const record = h("details", {}, h("summary", {}, "Recorded event (JSON)"), this.data);
    const side = h("aside.then-side", { "aria-label": "State at this position" });
    arrange(side, [this.batchThen?.element, this.uploadThen.element, record].filter(Boolean));
    return side;
  }

  /** The address of a page that has arrived leads back here, to this moment. */
  #moved(arrived) {
    this.problem.hidden = true;
    this.revealing ||= arrived;
    this.draw();
    const { position } = this.moments;
    const address = `${location.hash.split("?")[0]}${position === null ? "" : `?at=${position}`}`;
    if (arrived && location.hash !== address) history.replaceState(null, "", address);
  }

  /** More at the edge that the list has been scrolled to; the rows in sight stay where they are. */
  async #fetchNear() {
    const { scrollTop, scrollHeight, clientHeight } = this.list.element;
    if (scrollTop < NEAR * ROW && !this.events.atStart) {
      const added = await this.moments.fetch("earlier");
      this.#draw();
      this.list.element.scrollTop += added * ROW;
    } else if (scrollTop + clientHeight > scrollHeight - NEAR * ROW && !this.events.atEnd) {
      await this.moments.fetch("later");
      this.draw();
    }
  }

  #complain(error) {
    if (!(error instanceof Refused)) throw error;
    text(this.problem, error.message);
    this.problem.hidden = false;
  }

  #draw() {
    const { events, ids, moments } = this;
    const batch = this.store.batches.get(ids.batch);
    text(this.about, ids.upload ? this.#pathOf(ids.upload) : batch ? batchName(batch) : "");
    this.title = `History of ${this.about.textContent}`;
    if (!events.items.length) return;
    this.list.show(events.items.map((item) => ({
      ...item, id: String(item.position), path: item.stream === ids.batch || ids.upload ? "" : this.#pathOf(item.stream),
    })));
    const item = events.items[moments.index];
    this.list.select(String(item.position));
    if (this.revealing) this.list.reveal(String(item.position));
    this.revealing = false;
    this.#drawMoment(item);
    if (moments.known) this.#drawThen(item);
  }

  #drawMoment(item) {
    const { events, moments: { index, position } } = this;
    const said = lookOf(item);
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
