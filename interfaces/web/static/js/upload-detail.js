// Detail panel of one upload with all its attempts.

import { uploadActions } from "./actions.js";
import { chip } from "./state-chip.js";
import { glyph, h, text } from "./dom.js";
import { attemptState, bytes, calendar, clock, duration, percent, until, uploadState } from "./format.js";

const STORED = new Set(["received", "queued", "processing", "retry_scheduled", "completed", "failed"]);

export class UploadDetail {
  constructor(close) {
    this.actions = uploadActions();
    this.state = chip();
    this.path = h("h2");
    this.facts = h("dl");
    this.links = h("p.links");
    this.tries = h("h3");
    this.attempts = h("ol.attempts");
    // The layout above the actions is fixed, so they do not move.
    this.body = h("div.detail-body", {}, this.state.element, this.path, this.actions.element,
      this.facts, this.links, this.tries, this.attempts);
    this.element = h("aside.detail", { "aria-label": "Upload" },
      h("button.icon", { type: "button", "aria-label": "Close", title: "Close", onclick: close }, glyph("close")),
      this.body);
    this.element.hidden = true;
  }

  /** Redraw if the upload changed. */
  show(upload, attempts, position) {
    this.element.hidden = !upload;
    if (upload) this.actions.update(upload, position);
    const stamp = upload && [upload.id, upload.position, waiting(upload, attempts)].join();
    if (!upload || stamp === this.stamp) return;
    this.stamp = stamp;
    this.state.update(uploadState(upload.state));
    text(this.path, upload.path);
    this.facts.replaceChildren(...facts(upload));
    this.links.replaceChildren(...links(upload));
    text(this.tries, attempts.length === 1 ? "1 attempt" : `${attempts.length || "No"} attempts`);
    this.attempts.replaceChildren(...attempts.map(timeline));
  }
}

/** Return the time to the next attempt, which changes without a frame. */
function waiting(upload) {
  return upload.state === "retry_scheduled" && upload.retry_at ? until(upload.retry_at) : "";
}

function facts(upload) {
  const known = [
    ["Size", upload.size === null ? null : bytes(upload.size)],
    ["Received", upload.size !== null && upload.received < upload.size ? bytes(upload.received) : null],
    ["Type", upload.media_type],
    ["Checksum", upload.checksum],
    ["Registered", calendar(upload.registered_at)],
    ["Fully received", upload.received_at && calendar(upload.received_at)],
    ["Ended", upload.ended_at && calendar(upload.ended_at)],
    ["Next attempt", waiting(upload) && `${until(upload.retry_at)}, at ${clock(upload.retry_at)}`],
    ["Error", ["failed", "quarantined", "rejected"].includes(upload.state) ? upload.error : null],
  ];
  return known.filter(([, value]) => value)
    .flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]);
}

function links(upload) {
  const at = `/v1/uploads/${upload.id}`;
  const history = h("a", { href: `#/batches/${upload.batch}/uploads/${upload.id}/history` }, "History");
  return STORED.has(upload.state) ? [h("a", { href: `${at}/content`, download: "" }, "Download"), history] : [history];
}

function timeline(attempt) {
  const { word, shape, tone } = attemptState(attempt.state);
  const item = h("li.attempt", {},
    h("span.mark", {}, glyph(shape)),
    h("p.head", {}, h("b", {}, `Attempt ${attempt.number}`), ` ${word.toLowerCase()}`,
      h("span.aside", {}, attempt.duration === null ? clock(attempt.started_at) : duration(attempt.duration))),
    attempt.message ? h("p.error", {}, attempt.error_type ? h("code", {}, attempt.error_type) : null, attempt.message) : null,
    h("p.meta", {}, about(attempt)));
  item.dataset.tone = tone;
  return item;
}

function about(attempt) {
  const parts = [`on ${attempt.worker}`];
  if (attempt.step) parts.push(`step ${attempt.step}`);
  if (attempt.state === "running" && attempt.percent !== null) parts.push(percent(attempt.percent));
  if (attempt.permanent) parts.push("permanent, not retried");
  if (attempt.retry_at) {
    const words = Date.parse(attempt.retry_at) > Date.now() ? "next attempt" : "retried";
    parts.push(`${words} at ${clock(attempt.retry_at)}`);
  }
  return parts.join(", ");
}
