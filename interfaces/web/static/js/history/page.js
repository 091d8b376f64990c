// History page of a batch or an upload: a slider over the events, and the state at each.

import { RequestError } from "../api.js";
import { arrange, glyph, h, oncePerFrame, text } from "../dom.js";
import { VirtualList } from "../virtual-list.js";
import { batchName, calendar, count } from "../format.js";
import { EventWindow } from "./event-window.js";
import { Timeline } from "./timeline.js";
import { eventRow } from "./event-row.js";
import { Slider } from "./slider.js";
import { styleOf } from "./event-styles.js";
import { BatchStateAt, UploadStateAt } from "./state-at.js";

const ROW_HEIGHT = 40; // pixels; same as .event in history.css
const PRELOAD_ROWS = 20; // rows from the edge of the window at which more are loaded
const REFRESH_INTERVAL = 1000; // milliseconds between two requests for new events

export class HistoryPage {
  title = "History";
  section = "batches";

  /** `upload` is null for the history of the whole batch; `at` is the initial position. */
  constructor(store, batch, upload, at) {
    this.store = store;
    this.follows = [batch];
    this.ids = { batch, upload };
    this.events = upload ? new EventWindow("uploads", upload) : new EventWindow("batches", batch);
    this.timeline = new Timeline(this.events, {
      moved: (arrived) => this.#moved(arrived), failed: (error) => this.#showProblem(error),
    });
    this.draw = oncePerFrame(() => this.#draw());
    this.#build();
    this.timeline.go(at);
    this.clock = setInterval(() => this.timeline.refresh(), REFRESH_INTERVAL);
  }

  close() {
    clearInterval(this.clock);
    this.timeline.close();
    this.list.close();
  }

  changed({ live }) {
    if (live) this.timeline.markStale();
    this.draw();
  }

  #build() {
    const { batch, upload } = this.ids;
    const { timeline } = this;
    this.name = h("h1", {}, "History");
    this.about = h("p.summary");
    this.positionTime = h("p.position-time");
    this.slider = new Slider({ moved: (position) => timeline.slide(position), stepped: (step) => timeline.step(step) });
    this.list = new VirtualList({
      label: "Events", rowHeight: ROW_HEIGHT, make: eventRow,
      onSelect: (id) => (id === null ? this.draw() : timeline.go(Number(id))),
    });
    this.list.element.addEventListener("scroll", () => this.#fetchNear(), { passive: true });
    this.problem = h("p.problem", { role: "alert" });
    const raw = `/v1/${upload ? `uploads/${upload}` : `batches/${batch}`}/history?format=ndjson`;
    this.element = h("section.history", {},
      h("p.crumbs", {}, h("a", { href: `#/batches/${batch}` }, glyph("back"), "Batch"),
        h("span.documents", {},
          upload ? h("a", { href: `#/batches/${batch}/history` }, "History of the batch") : null,
          h("a", { href: raw }, "All events (NDJSON)"))),
      h("div.heading", {}, h("div", {}, this.name, this.about), this.positionTime),
      this.slider.element, this.problem,
      h("div.history-split", {}, h("div.list", {}, this.list.element), this.#sidePanel()));
  }

  #sidePanel() {
    this.batchState = this.ids.upload ? null : new BatchStateAt();
    this.uploadState = new UploadStateAt();
    this.data = h("pre.data", { tabindex: 0, "aria-label": "Recorded event" });
    const record = h("details", {}, h("summary", {}, "Recorded event (JSON)"), this.data);
    const side = h("aside.state-side", { "aria-label": "State at this position" });
    arrange(side, [this.batchState?.element, this.uploadState.element, record].filter(Boolean));
    return side;
  }

  /** Redraw; once loaded, put the position into the address. */
  #moved(arrived) {
    this.problem.hidden = true;
    this.revealing ||= arrived;
    this.draw();
    const { position } = this.timeline;
    const address = `${location.hash.split("?")[0]}${position === null ? "" : `?at=${position}`}`;
    if (arrived && location.hash !== address) history.replaceState(null, "", address);
  }

  /** Load more events near the edge of the window; visible rows keep their place. */
  async #fetchNear() {
    const { scrollTop, scrollHeight, clientHeight } = this.list.element;
    if (scrollTop < PRELOAD_ROWS * ROW_HEIGHT && !this.events.atStart) {
      const added = await this.timeline.fetch("loadEarlier");
      this.#draw();
      this.list.element.scrollTop += added * ROW_HEIGHT;
    } else if (scrollTop + clientHeight > scrollHeight - PRELOAD_ROWS * ROW_HEIGHT && !this.events.atEnd) {
      await this.timeline.fetch("loadLater");
      this.draw();
    }
  }

  #showProblem(error) {
    if (!(error instanceof RequestError)) throw error;
    text(this.problem, error.message);
    this.problem.hidden = false;
  }

  #draw() {
    const { events, ids, timeline } = this;
    const batch = this.store.batches.get(ids.batch);
    text(this.about, ids.upload ? this.#pathOf(ids.upload) : batch ? batchName(batch) : "");
    this.title = `History of ${this.about.textContent}`;
    if (!events.items.length) return;
    this.list.show(events.items.map((item) => ({
      ...item, id: String(item.position), path: item.stream === ids.batch || ids.upload ? "" : this.#pathOf(item.stream),
    })));
    const item = events.items[timeline.index];
    this.list.select(String(item.position));
    if (this.revealing) this.list.reveal(String(item.position));
    this.revealing = false;
    this.#drawPosition(item);
    if (timeline.isLoaded) this.#drawState(item);
  }

  #drawPosition(item) {
    const { events, timeline: { index, position } } = this;
    const style = styleOf(item);
    const words = `${style.word}${style.details ? `: ${style.details}` : ""}, ${calendar(item.at)}`;
    text(this.positionTime, `${calendar(item.at)}, position ${count(item.position)}${position === null ? " (now)" : ""}`);
    this.slider.show({
      first: events.first ?? item.position, last: events.last, position: position ?? events.last, description: words,
      atFirst: index === 0 && events.atStart, atNow: position === null,
    });
  }

  #drawState(item) {
    const { batch, upload } = this.ids;
    this.batchState?.show(batch, item.position);
    if (upload || item.stream !== batch) this.uploadState.show(upload ?? item.stream, item.position);
    else this.uploadState.hide();
    text(this.data, JSON.stringify(item, null, 2));
  }

  #pathOf(id) {
    return this.store.uploads.get(id)?.path ?? "";
  }
}
