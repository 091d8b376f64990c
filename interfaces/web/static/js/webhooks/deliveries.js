// Deliveries of a webhook, newest first, with their results.

import { get, RequestError } from "../api.js";
import { chip } from "../state-chip.js";
import { arrange, attribute, glyph, h, text } from "../dom.js";
import { calendar, count } from "../format.js";
import { redeliver } from "./actions.js";
import { deliveryState, outcomeOf } from "./format.js";

const PAGE_SIZE = 50;
const MAX_DELIVERIES = 500; // shown at most
const MIN_DISABLED = 800; // milliseconds that a button stays disabled: a double click is one click

export class Deliveries {
  constructor(webhook) {
    this.webhook = webhook;
    this.limit = PAGE_SIZE;
    this.rows = new Map();
    this.inFlight = new Set(); // positions of deliveries that are being queued again
    this.list = h("ol.deliveries", { "aria-label": "Deliveries" });
    this.none = h("p.empty.small", {}, "No deliveries. Send a test to create one.");
    this.more = h("button.more", { type: "button", onclick: () => { this.limit = Math.min(MAX_DELIVERIES, this.limit + PAGE_SIZE); this.refresh(); } }, "Show more");
    this.problem = h("p.problem", { role: "alert" });
    this.problem.hidden = true;
    this.element = h("section", {}, h("h2", {}, "Deliveries"), this.problem, h("div.list", {}, this.list, this.none), this.more);
  }

  /** Load the deliveries, at position `minPosition` or later. Raises RequestError. */
  async refresh(minPosition = 0) {
    const { items, next } = await get(`/v1/webhooks/${this.webhook}/deliveries?limit=${this.limit}&min_position=${minPosition}`);
    const known = this.rows;
    this.rows = new Map();
    for (const delivery of items) {
      const stamp = JSON.stringify(delivery);
      const row = known.get(delivery.position);
      const same = row?.stamp === stamp ? row : this.#row(delivery, stamp);
      text(same.outcome, outcomeOf(delivery)); // the time to a retry changes without an event
      this.rows.set(delivery.position, same);
    }
    const focused = document.activeElement?.closest(".delivery")?.dataset.position;
    arrange(this.list, [...this.rows.values()].map(({ element }) => element));
    if (focused) this.list.querySelector(`[data-position="${focused}"] button`)?.focus();
    this.none.hidden = items.length > 0;
    this.more.hidden = next === null || this.limit >= MAX_DELIVERIES;
  }

  #row(delivery, stamp) {
    const state = chip();
    state.update(deliveryState(delivery));
    const outcome = h("p.meta");
    const excerpt = delivery.last?.excerpt;
    const button = this.#redeliverButton(delivery);
    const element = h("li.delivery", { "data-position": delivery.position },
      state.element,
      h("div", {},
        h("p", {}, h("b", {}, delivery.type), h("span.number", { title: calendar(delivery.queued_at) }, ` ${positionText(delivery)}`)),
        outcome,
        excerpt ? h("details", {}, h("summary", {}, "Response"), h("pre", {}, excerpt)) : null),
      h("span.attempt-count", {}, delivery.attempts > 1 ? `${count(delivery.attempts)} attempts` : ""),
      delivery.batch ? h("a", { href: `#/batches/${delivery.batch}/history?at=${delivery.position}` }, "View event") : h("span"),
      button);
    const row = { element, outcome, stamp, delivery, button };
    this.#draw(row);
    return row;
  }

  /** Update the button, which keeps its place: it is disabled while the delivery is pending. */
  #draw({ button, delivery }) {
    const off = delivery.state === "pending" || this.inFlight.has(delivery.position);
    attribute(button, "aria-disabled", off ? "true" : null);
  }

  #redeliverButton(delivery) {
    const button = h("button", {
      type: "button", "aria-label": `Redeliver ${delivery.type} of position ${delivery.position}`,
    }, glyph("retry"), "Redeliver");
    button.addEventListener("click", () => {
      if (!button.hasAttribute("aria-disabled")) this.#redeliver(delivery.position);
    });
    return button;
  }

  async #redeliver(position) {
    const over = new Promise((resolve) => { setTimeout(resolve, MIN_DISABLED); });
    this.#setInFlight(position, true);
    this.problem.hidden = true;
    try {
      await redeliver(this.webhook, position);
      await this.refresh();
    } catch (error) {
      if (!(error instanceof RequestError)) throw error;
      text(this.problem, error.message);
      this.problem.hidden = false;
    } finally {
      await over;
      this.#setInFlight(position, false);
    }
  }

  #setInFlight(position, on) {
    if (on) this.inFlight.add(position);
    else this.inFlight.delete(position);
    const row = this.rows.get(position);
    if (row) this.#draw(row);
  }
}

const positionText = ({ position, queued_at: queued }) => `position ${count(position)}, ${calendar(queued)}`;
