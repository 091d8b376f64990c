// State of a batch or an upload at a position, rebuilt by the server from events.

import { get, RequestError } from "../api.js";
import { chip, tally } from "../state-chip.js";
import { attribute, h, text } from "../dom.js";
import { batchBar, transferred, uploadBar } from "../progress.js";
import { batchState, bytes, count, files, percent, STATES, uploadState } from "../format.js";

/** One panel. `show(id, position)` loads and draws; the latest call wins. */
class StateAt {
  #request = null;

  constructor(kind) {
    this.kind = kind;
    this.state = chip();
    this.name = h("h2");
    this.problem = h("p.problem");
    this.element = h("section.state-at", {}, this.name, this.state.element);
    this.element.hidden = true;
  }

  async show(id, position) {
    if (this.stamp === `${id}@${position}`) return;
    this.stamp = `${id}@${position}`;
    this.#request?.abort();
    this.#request = new AbortController();
    try {
      const row = await get(`/v1/${this.kind}/${id}?at=${position}`, this.#request.signal);
      this.problem.remove();
      this.state.update(this.stateOf(row));
      this.draw(row);
      this.element.dataset.position = position;
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof RequestError)) throw error;
      text(this.problem, error.message);
      this.element.append(this.problem);
    }
    this.element.hidden = false;
  }

  hide() {
    this.#request?.abort();
    this.stamp = null;
    this.element.hidden = true;
  }
}

export class BatchStateAt extends StateAt {
  constructor() {
    super("batches");
    text(this.name, "Batch at this position");
    this.bar = batchBar();
    this.percent = h("b.percent");
    this.counts = h("ul.tally");
    this.size = h("span");
    attribute(this.bar.element, "aria-label", "Progress of the batch at this position");
    this.element.append(
      h("div.row.measure", {}, this.bar.element, this.percent),
      h("div.row.foot", {}, this.counts, this.size));
  }

  stateOf(row) {
    return batchState(row);
  }

  draw(row) {
    this.bar.update(row);
    text(this.percent, percent(row.percent));
    text(this.size, row.uploads ? `${files(row.uploads)}, ${transferred(row)}` : "not counted yet");
    this.counts.replaceChildren(...tally(row.counts, uploadState, STATES, count));
  }
}

export class UploadStateAt extends StateAt {
  constructor() {
    super("uploads");
    this.bar = uploadBar();
    this.facts = h("dl");
    this.element.append(this.bar.element, this.facts);
  }

  stateOf(row) {
    return uploadState(row.state);
  }

  draw(row) {
    text(this.name, row.path);
    this.bar.update(row);
    const known = [
      ["Received", `${bytes(row.received)}${row.size === null ? "" : ` of ${bytes(row.size)}`}`],
      ["Step", row.phase && row.percent !== null ? `${row.phase}, ${percent(row.percent)}` : row.phase],
      ["Attempt", row.attempt || null],
      ["Error", row.error && `${row.error_step ? `${row.error_step}: ` : ""}${row.error}`],
    ];
    this.facts.replaceChildren(...known.filter(([, value]) => value)
      .flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]));
  }
}
