// Page of one batch: progress, failures by reason, and all uploads with their attempts.

import { batchActions } from "./actions.js";
import { principal, UPLOADER_SCOPES } from "./api.js";
import { chip } from "./state-chip.js";
import { UploadDetail } from "./upload-detail.js";
import { arrange, attribute, glyph, h, oncePerFrame, text } from "./dom.js";
import { batchBar, transferred } from "./progress.js";
import { uploadRow } from "./upload-row.js";
import { VirtualList } from "./virtual-list.js";
import { activityNote, ago, batchName, batchState, calendar, count, duration, ended, files, percent, STATES, FAILED_STATES, uploadState } from "./format.js";

const ROW_HEIGHT = 44; // pixels; same as --row in app.css
const THROTTLE_ROWS = 2000; // above this, list and failures are rebuilt at most once a second
const RANK = new Map(STATES.map((state, rank) => [state, rank]));

export class BatchPage {
  title = "Batch";
  section = "batches";

  constructor(store, id) {
    this.store = store;
    this.id = id;
    this.follows = [id];
    this.filter = { state: null, reason: null };
    this.sortedAt = -Infinity;
    this.draw = oncePerFrame(() => this.#draw());
    this.list = new VirtualList({
      label: "Uploads", rowHeight: ROW_HEIGHT, make: uploadRow, onSelect: (upload) => this.#choose(upload),
    });
    this.detail = new UploadDetail(() => this.list.select(null) ?? this.#choose(null));
    this.#build();
    this.clock = setInterval(this.draw, 1000);
  }

  close() {
    clearInterval(this.clock);
    this.list.close();
  }

  changed() {
    this.draw();
  }

  refused(error) {
    if (error.code === "unknown_batch") this.unknown = true;
    this.draw();
  }

  #build() {
    this.name = h("h1");
    this.state = chip();
    this.meta = h("p.summary.line");
    this.note = h("p.status-note");
    this.actions = batchActions();
    this.bar = batchBar();
    this.percent = h("p.figure");
    this.size = h("p.aside-note");
    this.filters = h("div.filters", { role: "group", "aria-label": "Show uploads by state" });
    this.reasons = h("ul.reasons");
    this.noReasons = h("p.meta", {}, "No failures left.");
    this.failurePanel = h("section.failures", { "aria-label": "Failures by reason" }, h("h2", {}, "Failures by reason"), this.reasons, this.noReasons);
    this.failurePanel.hidden = true;
    this.none = h("p.empty.small");
    this.add = h("a", { href: `#/send?batch=${this.id}` }, "Add files");
    this.documents = documents(this.id, this.add);
    this.add.classList.add("is-invisible");
    principal().then((who) => { this.mayAdd = UPLOADER_SCOPES.has(who?.scope); this.draw(); });
    this.content = h("div", {},
      h("div.heading", {}, h("div", {}, this.name, this.meta), this.state.element),
      h("section.overall", {}, this.percent, h("div.grow", {}, this.bar.element, this.size)),
      this.actions.element, // the layout above the buttons is fixed, so they do not move
      this.note, this.failurePanel, this.filters,
      h("div.split", {}, h("div.list", {}, this.list.element, this.none), this.detail.element));
    this.missing = h("div.empty", {},
      h("h2", {}, "No such batch"), h("p", {}, "It belongs to another owner, or has not been started yet. Once it is started, it appears here."));
    this.element = h("section", {},
      h("p.crumbs", {}, h("a", { href: "#/" }, glyph("back"), "Batches"),
        this.documents),
      this.content, this.missing);
    this.draw();
  }

  #choose(upload) {
    this.chosen = upload;
    this.draw();
  }

  #draw() {
    const batch = this.store.batches.get(this.id);
    this.content.hidden = !batch;
    this.missing.hidden = Boolean(batch) || !this.unknown;
    if (!batch) return;
    this.title = `${batch.outcome ? batchState(batch).word : percent(batch.percent)}, ${batchName(batch)}`;
    this.#drawHead(batch);
    this.#drawRows();
    this.detail.show(this.store.uploads.get(this.chosen), this.store.attemptsOf(this.chosen), this.store.position);
    this.content.classList.toggle("with-detail", !this.detail.element.hidden);
  }

  #drawHead(batch) {
    text(this.name, batchName(batch));
    this.state.update(batchState(batch));
    this.bar.update(batch);
    this.actions.update(batch, this.store.position);
    this.add.classList.toggle("is-invisible", !this.mayAdd || batch.state !== "open");
    attribute(this.bar.element, "aria-label", "Progress of the batch");
    text(this.percent, percent(batch.percent));
    text(this.size, `${transferred(batch)}, ${count(ended(batch))} of ${files(batch.uploads)} ended`);
    const took = batch.completed_at
      ? `took ${duration((Date.parse(batch.completed_at) - Date.parse(batch.started_at)) / 1000)}`
      : `started ${ago(batch.started_at)}`;
    text(this.meta, `${took}, by ${batch.started_by}, pipeline ${batch.pipeline}${batch.priority ? `, priority ${batch.priority}` : ""}`);
    text(this.note, activityNote(batch));
    attribute(this.meta, "title", `Started ${calendar(batch.started_at)}`);
  }

  /** Draw one filter per existing state, with counts of the rows in the list. */
  #drawFilters(counts, all) {
    const known = new Map([...this.filters.children].map((button) => [button.dataset.state, button]));
    const wanted = ["", ...STATES.filter((state) => counts[state] || this.filter.state === state)];
    arrange(this.filters, wanted.map((state) => {
      const button = known.get(state) ?? this.#filterButton(state);
      text(button.lastChild, count(state ? (counts[state] ?? 0) : all));
      attribute(button, "aria-pressed", String((this.filter.state ?? "") === state && !this.filter.reason));
      return button;
    }));
  }

  #filterButton(state) {
    const { word, shape, tone } = state ? uploadState(state) : { word: "All", tone: "quiet" };
    const button = h("button", { type: "button", "data-state": state, onclick: () => this.#setFilter(state || null, null) },
      shape ? glyph(shape) : null, word, h("span.number"));
    button.dataset.tone = tone;
    return button;
  }

  #setFilter(state, reason) {
    this.filter = { state, reason };
    this.sortedAt = -Infinity;
    this.list.element.scrollTop = 0;
    this.draw();
  }

  #drawReasons() {
    const groups = new Map(); // by reason: count, and the common message or its pattern
    for (const upload of this.store.uploads.values()) {
      if (!FAILED_STATES.has(upload.state)) continue;
      const [reason, words] = [reasonOf(upload), messageOf(upload)];
      const known = groups.get(reason);
      groups.set(reason, { number: (known?.number ?? 0) + 1, words: !known || known.words === words ? words : reason });
    }
    const stamp = JSON.stringify([...groups, this.filter.reason]);
    if (stamp === this.reasonStamp) return;
    this.reasonStamp = stamp;
    // The panel never shrinks: content below must not move under the pointer during a click.
    if (!this.failurePanel.hidden) this.failurePanel.style.minBlockSize = `${this.failurePanel.getBoundingClientRect().height}px`;
    this.failurePanel.hidden &&= !groups.size;
    this.noReasons.hidden = groups.size > 0;
    const largest = [...groups].sort(([, a], [, b]) => b.number - a.number).slice(0, 8);
    this.reasons.replaceChildren(...largest.map(([reason, group]) => this.#reason(reason, group)));
  }

  #reason(reason, { number, words }) {
    const pressed = this.filter.reason === reason;
    return h("li", {}, h("button", {
      type: "button", "aria-pressed": String(pressed),
      onclick: () => this.#setFilter(null, pressed ? null : reason),
    }, glyph("failed"), h("span.reason", {}, words), h("span.number", {}, files(number))));
  }

  #drawRows() {
    const now = performance.now();
    const { uploads } = this.store;
    if (uploads.size > THROTTLE_ROWS && now - this.sortedAt < 1000) return this.#refresh();
    this.sortedAt = now;
    this.#drawReasons();
    const counts = {};
    const rows = [];
    for (const upload of uploads.values()) {
      counts[upload.state] = (counts[upload.state] ?? 0) + 1;
      if (this.#shows(upload)) rows.push(upload);
    }
    rows.sort(failedFirst);
    this.order = rows.map((row) => row.id);
    this.#drawFilters(counts, uploads.size);
    this.list.show(rows);
    this.none.hidden = rows.length > 0;
    text(this.none, uploads.size ? "No uploads match this filter." : "No files yet.");
  }

  /** Redraw the same rows in the same order. */
  #refresh() {
    this.list.show(this.order.map((id) => this.store.uploads.get(id)).filter(Boolean));
  }

  #shows(upload) {
    const { state, reason } = this.filter;
    if (reason) return FAILED_STATES.has(upload.state) && reasonOf(upload) === reason;
    return !state || upload.state === state;
  }
}

/** Links of the batch: add files, history, reports. */
function documents(id, add) {
  const at = `/v1/batches/${id}`;
  return h("span.documents", {},
    add,
    h("a", { href: `#/batches/${id}/history` }, "History"),
    h("a", { href: `${at}/report.csv`, download: "" }, "Report (CSV)"),
    h("a", { href: `${at}/report.csv?only=failed`, download: "" }, "Failed only (CSV)"));
}

/** Messages that differ only in numbers are one reason, as in the report. */
const reasonOf = (upload) => messageOf(upload).replaceAll(/\d+/g, "#");

function messageOf(upload) {
  const step = upload.error_step ? `${upload.error_step}: ` : "";
  return `${step}${upload.error ?? uploadState(upload.state).word.toLowerCase()}`;
}

function failedFirst(a, b) {
  const rank = (RANK.get(a.state) ?? 0) - (RANK.get(b.state) ?? 0);
  return rank || (a.path < b.path ? -1 : a.path > b.path ? 1 : 0);
}
