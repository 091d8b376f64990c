// Page of all batches, newest first, with progress and filters.

import { chip, tally } from "./state-chip.js";
import { arrange, attribute, h, oncePerFrame, text } from "./dom.js";
import { batchBar, transferred } from "./progress.js";
import { ago, batchName, batchState, calendar, count, failures, files, percent, STATES, uploadState } from "./format.js";

const PAGE = 50;
const VIEWS = {
  all: ["All", () => true],
  unfinished: ["Unfinished", (batch) => !batch.outcome],
  attention: ["With failures", (batch) => failures(batch) > 0],
  finished: ["Finished", (batch) => Boolean(batch.outcome)],
};

export class BatchesPage {
  title = "Batches";
  section = "batches";
  follows = "*";

  constructor(store) {
    this.store = store;
    this.cards = new Map();
    this.view = "all";
    this.limit = PAGE;
    this.summary = h("p.summary");
    this.tabs = h("div.tabs", { role: "group", "aria-label": "Show" }, ...this.#buttons());
    this.list = h("ul.cards", { "aria-label": "Batches" });
    this.more = h("button.more", { type: "button", onclick: () => this.#showMore() }, "Show more");
    this.empty = h("div.empty");
    this.element = h("section", {},
      h("div.heading", {}, h("div", {}, h("h1", {}, "Batches"), this.summary), this.tabs),
      this.list, this.empty, this.more);
    this.draw = oncePerFrame(() => this.#draw());
    this.clock = setInterval(this.draw, 10_000);
    this.draw();
  }

  close() {
    clearInterval(this.clock);
  }

  changed() {
    this.draw();
  }

  #buttons() {
    return Object.entries(VIEWS).map(([name, [label]]) =>
      h("button", { type: "button", "data-view": name, onclick: () => this.#show(name) },
        label, h("span.number")));
  }

  #show(view) {
    this.view = view;
    this.limit = PAGE;
    this.draw();
  }

  #showMore() {
    this.limit += PAGE;
    this.draw();
  }

  #draw() {
    const all = [...this.store.batches.values()];
    for (const tab of this.tabs.children) {
      const [, test] = VIEWS[tab.dataset.view];
      attribute(tab, "aria-pressed", String(tab.dataset.view === this.view));
      text(tab.lastChild, count(all.filter(test).length));
    }
    const [, wanted] = VIEWS[this.view];
    const shown = all.filter(wanted).sort(newestFirst);
    const unfinished = all.filter((batch) => !batch.outcome).length;
    text(this.summary, all.length ? `${count(unfinished)} unfinished, ${count(all.length - unfinished)} finished` : "");
    arrange(this.list, shown.slice(0, this.limit).map((batch) => this.#card(batch)));
    this.more.hidden = shown.length <= this.limit;
    this.#drawEmpty(all.length, shown.length);
    for (const id of this.cards.keys()) if (!this.store.batches.has(id)) this.cards.delete(id);
  }

  #drawEmpty(all, shown) {
    this.empty.hidden = shown > 0;
    if (shown || this.store.position === null) {
      this.empty.hidden = true;
    } else if (all) {
      this.empty.replaceChildren(h("p", {}, "No batches match this filter."));
    } else {
      this.empty.replaceChildren(
        h("h2", {}, "No batches yet"),
        h("p", {}, "Start a batch to see it here: ", h("a", { href: "#/send" }, "upload from this browser"), ", or in a terminal:"),
        h("pre", {}, h("code", {}, "uptrail upload ./folder --wait")));
    }
  }

  #card(batch) {
    if (!this.cards.has(batch.id)) this.cards.set(batch.id, new Card(batch.id));
    const card = this.cards.get(batch.id);
    card.update(batch);
    return card.element;
  }
}

class Card {
  constructor(id) {
    this.name = h("a.name", { href: `#/batches/${id}` });
    this.state = chip();
    this.bar = batchBar();
    this.percent = h("b.percent");
    this.size = h("span");
    this.meta = h("p.meta");
    this.counts = h("ul.tally");
    this.element = h("li.card", { "data-batch": id },
      h("div.row", {}, h("div.title", {}, h("h2", {}, this.name), this.meta), this.state.element),
      h("div.row.measure", {}, this.bar.element, this.percent),
      h("div.row.foot", {}, this.counts, this.size));
  }

  update(batch) {
    const stalled = batch.activity === "stalled" ? `last activity ${ago(batch.activity_since)}, ` : "";
    text(this.meta, `${stalled}${files(batch.uploads)}, started ${ago(batch.started_at)} by ${batch.started_by}`);
    if (this.batch === batch) return;
    this.batch = batch;
    text(this.name, batchName(batch));
    this.state.update(batchState(batch));
    this.bar.update(batch);
    attribute(this.bar.element, "aria-label", batchName(batch));
    text(this.percent, percent(batch.percent));
    text(this.size, transferred(batch));
    attribute(this.meta, "title", calendar(batch.started_at));
    this.counts.replaceChildren(...tally(batch.counts, uploadState, STATES, count));
  }
}

function newestFirst(a, b) {
  return a.started_at === b.started_at ? (a.id < b.id ? 1 : -1) : a.started_at < b.started_at ? 1 : -1;
}
